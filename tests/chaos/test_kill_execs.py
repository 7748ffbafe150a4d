"""kill -9 of the scheduling service while exec tasks are started, run and deleted: each ends once, or never was."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from dlmesh_platform.client import API, Client
from dlmesh_platform.launch import RunningPlatform

pytestmark = [pytest.mark.platform, pytest.mark.slow]

TASKS, KILLS, KILL_EVERY_SECONDS, DEADLINE_SECONDS = 24, 4, 1.5, 120.0
PROGRAM = """
import os, sys, time
with open(sys.argv[1], "a") as file:
    file.write(os.environ["DLI_EXECID"] + "\\n")
time.sleep(0.3)
print("done")
"""


@contextmanager
def killed_again_and_again(platform: RunningPlatform) -> Iterator[list[int]]:
    """The scheduling service, beside what the block does; the process ids that were killed."""
    victims: list[int] = []
    over = threading.Event()

    def run() -> None:
        while len(victims) < KILLS and not over.wait(KILL_EVERY_SECONDS):
            pid = platform.pids().get("scheduling")
            if pid is not None and pid not in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    victims.append(pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield victims
    finally:
        over.set()
        thread.join()


def test_every_task_ends_once_or_never_was(platform: RunningPlatform, admin: Client) -> None:
    password = (platform.home / "admin_password").read_text().strip()
    runs = platform.home / "data" / "runs-of-killed-execs"
    line = f"--exec-start PyTorch --model-main main.py {runs}"
    before = {row["id"] for row in admin.get("/execs")}
    accepted: list[str] = []
    with killed_again_and_again(platform) as victims:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(accepted) < TASKS or len(victims) < KILLS:
            assert time.monotonic() < deadline, (len(accepted), victims)
            try:
                answer = requests.post(
                    f"{platform.url}{API}/execs",
                    params={"args": line},
                    files={"file": ("main.py", PROGRAM)},
                    auth=("Admin", password),
                    timeout=60,
                )
            except requests.ConnectionError:
                continue
            if answer.status_code == 201:
                accepted.append(answer.json()["id"])
            else:
                # Killed over it: whether there is a task is not known, and both are right.
                assert answer.status_code in (500, 503), answer.text
                time.sleep(0.2)

    def states() -> dict[str, str]:
        return {row["id"]: row["state"] for row in admin.get("/execs") if row["id"] not in before}

    admin.until(lambda: set(states().values()) == {"FINISHED"}, seconds=DEADLINE_SECONDS)
    tasks = states()
    assert set(accepted) <= tasks.keys()
    assert sorted(runs.read_text().split()) == sorted(tasks), "each ran once"
    for task_id in tasks:
        log = admin.request("GET", f"/execs/{task_id}/log", params={"logType": "outlog"}).text
        assert log == "done\n"
    folders = {path.name for path in (platform.home / "execs").iterdir() if not path.name.startswith(".")}
    assert tasks.keys() <= folders

    # Deleted is deleted, also by a service that is killed over it.
    assert admin.request("DELETE", "/execs").json() >= len(tasks)
    os.kill(platform.pids()["scheduling"], signal.SIGKILL)
    admin.until(lambda: not files_of(platform.home, tasks.keys()), seconds=DEADLINE_SECONDS)
    assert admin.get("/execs") == []


def files_of(home: Path, task_ids: Collection[str]) -> list[Path]:
    """What is left of tasks."""
    found = [*(home / "execs").iterdir(), *(home / "jobs").iterdir()]
    return [path for path in found if path.name in task_ids]
