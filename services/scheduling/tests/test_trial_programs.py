"""How programs of trials end, and what the next ones find of them."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest
from scheduling_service.storage import parent_results
from scheduling_service.storage.parent_results import copy_results
from servicekit.folders import remove_folder
from trials_room import START, UPLOAD, end_of, packed, service, start, trial

COMMAND = "--exec-start PyTorch --user-cmd -- bash -c"


@pytest.mark.parametrize(
    ("program", "arguments", "state", "was_killed"),
    [
        ("import os; os.kill(os.getpid(), 9)", START, "ERROR", True),
        ("", f"{COMMAND} 'kill -9 $$'", "ERROR", True),
        ("", f"{COMMAND} 'bash -c \"kill -9 \\$\\$\"; exit $?'", "ERROR", True),
        ("import os; os.kill(os.getpid(), 15)", START, "ERROR", False),
        ("raise SystemExit(1)", START, "ERROR", False),
        ("pass", START, "FINISHED", False),
    ],
    ids=["itself", "its command", "a shell of it", "ended", "failed", "finished"],
)
async def test_who_follows_a_trial_knows_whether_it_was_killed(
    tmp_path: Path, program: str, arguments: str, state: str, was_killed: bool
) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_bytes(packed({"main.py": program}))
        task_id = await start(platform, trial(arguments=arguments))
        await end_of(platform, task_id)
        # As the tuning service asks.
        facts = (await platform.ends.get([task_id]))[task_id]
        assert (facts.state, facts.was_killed) == (state, was_killed)


async def test_one_that_ran_too_long_was_not_killed(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text(
            "import signal, time; signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(0.1)"
        )
        task_id = await start(platform, trial(max_seconds=1.5))
        await end_of(platform, task_id)
        facts = (await platform.ends.get([task_id]))[task_id]
        assert (facts.state, facts.was_killed) == ("ERROR", False)
        assert facts.reason == "ran longer than the allowed 1.5 seconds"


# Leaves a checkpoint and links, or has put a link in the place of its results.
LEAVES = """
import os, pathlib, sys
results = pathlib.Path(os.environ["RESULT_DIR"])
(results / "model" / "last.pt").write_text("weights")
(results / "inside").symlink_to("model/last.pt")
(results / "outside").symlink_to("/etc/hostname")
if sys.argv[1] == "link":
    results.rename(results.with_name("moved"))
    results.symlink_to("moved")
"""
FINDS = """
import os, pathlib
folder = os.environ.get("DLMESH_PARENT_RESULT_DIR", "nothing")
print(folder)
for path in sorted(pathlib.Path(folder).rglob("*")):
    print(path.relative_to(folder), path.readlink() if path.is_symlink() else path.is_file() and path.read_text())
"""


async def test_a_trial_finds_what_its_parent_left(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:

        async def ended(program: str, arguments: str = "", parent: str = "") -> str:
            (tmp_path / UPLOAD).write_text(program)
            task_id = await start(platform, trial(arguments=f"{START} {arguments}", parent_task_id=parent))
            job = await end_of(platform, task_id)
            assert job.state == "FINISHED", job.log_tail
            return task_id

        async def found_of(parent: str) -> tuple[str, list[str]]:
            task_id = await ended(FINDS, parent=parent)
            folder, *lines = (tmp_path / "jobs" / task_id / "attempt-1" / "rank-0.out").read_text().splitlines()
            return folder.replace(task_id, "ID"), lines

        parent, link = await ended(LEAVES, "plain"), await ended(LEAVES, "link")
        left = ["inside model/last.pt", "model False", "model/last.pt weights", "outside /etc/hostname"]
        # A copy: what it does there is not its parent's.
        assert await found_of(parent) == (str(tmp_path / "execs" / "ID" / "parent"), left)
        for gone in (link, "0" * 32, ""):
            assert await found_of(gone) == ("nothing", [])


def test_what_cannot_be_copied_is_nothing_to_go_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = tmp_path / "results"

    def copied(most_bytes: int = 0) -> bool:
        caplog.clear()
        is_copied = copy_results(results, tmp_path / "copy", most_bytes)
        assert (tmp_path / "copy").exists() == is_copied
        return is_copied

    with caplog.at_level(logging.WARNING, parent_results.log.name):
        assert not copied()
        results.write_text("no folder")
        assert not copied()
        assert not caplog.records
        results.unlink()
        results.mkdir()
        (results / "first").write_text("1")
        os.mkfifo(results / "pipe")
        assert not copied()
        assert "not a plain file" in caplog.text
        (results / "pipe").unlink()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(results / "socket"))
            assert not copied()
        (results / "socket").unlink()
        deep = results
        for _ in range(1500):
            deep = deep / "d"
            deep.mkdir()
        assert not copied()
        remove_folder(results / "d")
        # It takes no room where it lies.
        with (results / "sparse").open("wb") as file:
            file.truncate(8 << 20)
        assert not copied(1 << 20)
        assert "its files hold more than 1048576 bytes" in caplog.text
        (results / "sparse").unlink()
        assert copied(1)
        assert (tmp_path / "copy" / "first").read_text() == "1"


def test_a_disk_in_trouble_is_no_fault_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(parent_results, "copy_folder", full)
    with pytest.raises(OSError, match="No space left"):
        copy_results(tmp_path / "results", tmp_path / "copy", 0)
