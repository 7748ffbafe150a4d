"""`dlmesh search` against a platform: what it prints, where, and its exit codes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from search_room import ENDED, PROGRAM, RATE, WAIT, ended, search, start, values

pytestmark = [pytest.mark.platform, pytest.mark.slow]

COMMAND = [sys.executable, "-P", "-m", "dlmesh_platform.cli", "search"]
WIDTH = {"name": "layer_width_of_the_first", "type": "range", "dataType": "INT", "minIntVal": 1, "maxIntVal": 3}
# Slow enough to be watched.
SLOW = PROGRAM.replace("rate = config", "time.sleep(0.3)\nrate = config")
# Below the data root; no trial ends before it is there.
GATE = "may-go-on"
HELD = PROGRAM.replace(
    "rate = config",
    f"while not os.path.exists(os.path.join(os.environ['DATA_DIR'], '{GATE}')):\n    time.sleep(0.05)\nrate = config",
)


@pytest.fixture
def searches(admin: Client) -> Iterator[None]:
    """There are none before and none afterwards."""

    def remove() -> None:
        for one in admin.get("/hypersearch"):
            if one["state"] not in ENDED:
                admin.put(f"/hypersearch/{one['hpoName']}/force")
        for one in admin.get("/hypersearch"):
            admin.delete(f"/hypersearch/{one['hpoName']}")

    remove()
    yield
    remove()


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "DLMESH_HOME": str(home), "TERM": "dumb", "COLUMNS": "80", **more}


def dlmesh(platform: RunningPlatform, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment(platform.home, **more), capture_output=True, text=True, timeout=240
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def until_it_has_ended(platform: RunningPlatform, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command that watches trials, which go on when it has printed its first line."""
    gate = platform.home / "data" / GATE
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(platform.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], 240)[0]
            first = process.stdout.readline()
            gate.touch()
            rest, _ = process.communicate(timeout=240)
        finally:
            process.kill()
            gate.unlink(missing_ok=True)
    return process.returncode, first + rest


def in_a_terminal(platform: RunningPlatform, *arguments: str) -> str:
    """What a terminal of 24 lines and 80 columns was sent by a command that ended well."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    wanted = environment(platform.home, TERM="xterm-256color")
    del wanted["COLUMNS"]
    process = subprocess.Popen([*COMMAND, *arguments], env=wanted, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = b""
    try:
        while chunk := os.read(ours, 65536):
            sent += chunk
    except OSError:
        # How a terminal says that nobody is there any more.
        pass
    finally:
        os.close(ours)
    assert process.wait(240) == 0
    return sent.decode()


def test_a_search_is_listed_shown_steered_and_deleted(admin: Client, platform: RunningPlatform, searches: None) -> None:
    assert dlmesh(platform, "list") == (0, "No searches. docs/tuning.md has one to begin with.\n", "")
    start(admin, search("steered", RATE, WAIT, maxJobNum=2))
    admin.until(lambda: admin.get("/hypersearch/steered")["running"] == 1, seconds=240)
    code, table, _ = dlmesh(platform, "list")
    assert code == 0
    assert re.search(r"steered .* RUNNING .* 0/2 .* Random", table)
    code, shown, _ = dlmesh(platform, "show", "steered")
    assert code == 0
    assert shown.startswith("steered RUNNING  0/2 trials in ")

    code, _, says = dlmesh(platform, "delete", "steered")
    assert (code, says.startswith("dlmesh: DELETE /hypersearch/steered: 409 ")) == (1, True)
    code, _, says = dlmesh(platform, "restart", "steered")
    assert (code, "409 " in says) == (1, True)
    code, says, _ = dlmesh(platform, "stop", "steered")
    assert (code, "dlmesh search restart steered" in says) == (0, True)
    assert ended(admin, "steered")["state"] == "STOPPED"
    code, _, says = dlmesh(platform, "stop", "steered")
    assert (code, "is already stopped" in says) == (1, True)

    code, says, _ = dlmesh(platform, "restart", "steered", "--trials", "5", "--minutes", "30")
    assert (code, "--watch follows it" in says) == (0, True)
    detail = admin.get("/hypersearch/steered")
    assert (detail["state"], detail["progress"]) == ("RUNNING", "0/5")
    assert dlmesh(platform, "stop", "steered", "--force")[0] == 0
    assert admin.get("/hypersearch/steered")["state"] == "STOPPED"
    code, says, _ = dlmesh(platform, "delete", "steered")
    assert (code, says) == (0, "steered is deleted\n")
    for command in ("show", "stop", "restart", "delete"):
        code, printed, says = dlmesh(platform, command, "steered")
        assert (code, printed) == (1, "")
        assert says.startswith("dlmesh: ")
        assert "'steered'" in says


def test_why_one_failed_is_told_in_narrow_and_wide_terminals(
    admin: Client, platform: RunningPlatform, searches: None
) -> None:
    fails = {"name": "fails", "type": "Fix", "dataType": "int", "fixedVal": 1}
    start(admin, search("unlucky", RATE, fails, maxJobNum=1))
    start(admin, search("fine", maxJobNum=1))
    best = ended(admin, "fine")["best"]["metricVal"]
    assert ended(admin, "unlucky")["state"] == "FAILED"
    _, narrow, _ = dlmesh(platform, "list")
    assert max(map(len, narrow.splitlines())) <= 80
    assert re.search(r"unlucky .* FAILED .* 1/1 .* Random", narrow)
    assert f"│ {best:.6g} " in narrow
    assert "unlucky: no trial ended with a value (1 failed" in narrow
    assert "fine: " not in narrow
    _, wide, _ = dlmesh(platform, "list", COLUMNS="200")
    assert re.search(r"unlucky .* FAILED .* │ no trial ended with a value \(1 failed", wide)
    _, shown, _ = dlmesh(platform, "show", "unlucky")
    assert "this trial fails" in shown


def test_a_dumb_terminal_gets_a_line_a_change(admin: Client, platform: RunningPlatform, searches: None) -> None:
    start(admin, search("watched", RATE, WIDTH, maxJobNum=8), HELD)
    code, printed = until_it_has_ended(platform, "show", "watched", "--watch", "--trials", "3")
    assert code == 0
    assert "\x1b" not in printed
    detail = ended(admin, "watched")
    assert detail["state"] == "FINISHED"
    lines, _, last = printed.partition("watched FINISHED  8/8 trials in ")
    told = lines.splitlines()
    assert all(line.startswith(("watched SUBMITTED  ", "watched RUNNING  ")) for line in told)
    assert len(told) == len(set(told)) >= 1
    assert max(map(len, last.splitlines())) <= 80
    rows = re.findall(r"^│ (\d+) +│ ([\d.e-]+) +│ ([\d.]+) +│ (\d) +│$", last, re.MULTILINE)
    by_value = sorted(detail["experiments"], key=lambda one: one["metricVal"])[:3]
    assert rows == [
        (str(one["id"]), f"{one['metricVal']:.6g}", values(one)["rate"], values(one)[WIDTH["name"]]) for one in by_value
    ]
    assert WIDTH["name"] in last
    assert re.search(rf"best so far  \S+ {detail['best']['metricVal']:.6g}\n", last)
    # Eight have finished: there is something to say about parameters.
    assert re.search(r"│ rate +│ █+ +│ +\d+% │", last)


def test_a_terminal_is_drawn_over(admin: Client, platform: RunningPlatform, searches: None) -> None:
    start(admin, search("drawn", RATE, maxJobNum=4), SLOW)
    sent = in_a_terminal(platform, "show", "drawn", "--watch")
    assert "\x1b[" in sent
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= 80
    last = plain.rpartition("drawn ")[2]
    assert last.startswith("FINISHED  4/4 trials")
    assert f"{ended(admin, 'drawn')['best']['metricVal']:.6g}" in last
    assert sent.endswith("\x1b[?25h"), "the cursor is to be seen again"


def test_terminals_that_know_only_ascii(admin: Client, platform: RunningPlatform, searches: None) -> None:
    start(admin, search("plain", {**RATE, "name": "größe"}, maxJobNum=8), PROGRAM.replace('"rate"', '"größe"'))
    ended(admin, "plain")
    code, printed, _ = dlmesh(platform, "show", "plain", PYTHONIOENCODING="ascii")
    assert code == 0
    assert "gr??e" in printed
    assert re.search(r"best so far  [_.:=+*#-]{8} \d", printed)
