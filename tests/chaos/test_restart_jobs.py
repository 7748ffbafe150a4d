"""The service, the processes of jobs, or the whole machine goes down while jobs are in every state: all go on, once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2
from google.api.httpbody_pb2 import HttpBody
from scheduling_service.domain.job import Job
from scheduling_service.engines.local import processes
from scheduling_service.storage.jobs import SqlJobs
from servicekit.database import Database
from testkit.scheduling_process import SchedulingProcess

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 30.0
# Says which attempt and rank it is, fails as often as it is told to, and waits until it may end.
PROGRAM = """
import os, sys, time
evidence, go, fails = sys.argv[1:4]
line = f"{os.environ['DLMESH_JOB_ATTEMPT']} {os.environ['RANK']}\\n"
os.write(os.open(evidence, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), line.encode())
if open(evidence).read().count("\\n") <= int(fails):
    sys.exit(3)
while not os.path.exists(go):
    time.sleep(0.02)
"""
BOUNDARY = "b0und4ry"
TERM, KILL = signal.SIGTERM, signal.SIGKILL
EXEC, GANG, WAITING, PAUSING = "exec", "gang", "waiting", "pausing"


class Room:
    """The service with jobs in every state: an exec task and a gang run, one waits, one pauses before its retry."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.home, self.data, self.database_url = home, home / "data", database_url
        self.data.mkdir(parents=True)
        (self.data / "program.py").write_text(PROGRAM)
        environment = {"DLMESH_SLOTS": "4", "DLMESH_WARM_POOL": "0", "DLMESH_DATABASE_URL": database_url}
        self.service = SchedulingProcess(home, environment)
        self.ids: dict[str, str] = {}

    def begin(self) -> None:
        self.service.start()
        words = self.words(EXEC)
        body = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="main.py"\r\n\r\n{PROGRAM}\r\n'
            f"--{BOUNDARY}--\r\n"
        )
        request = scheduling_pb2.StartExecRequest(
            body=HttpBody(content_type=f"multipart/form-data; boundary={BOUNDARY}", data=body.encode()),
            arguments=f"--exec-start PyTorch --model-main main.py {' '.join(words)}",
        )
        self.ids[EXEC] = self.service.start_exec(request).id
        self.submit(GANG, ranks=2)
        until(lambda: len(self.lines(EXEC)) == 1 and len(self.lines(GANG)) == 2)
        # After the first failure there is no pause.
        self.submit(PAUSING, fails=2, max_restarts=2)
        # It wants all slots, so that nobody starts who comes before it in the line but ends after.
        self.submit(WAITING, ranks=4)
        until(lambda: "pauses" in self.job(PAUSING).reason)

    def words(self, name: str, fails: int = 0) -> list[str]:
        return [str(self.data / f"{name}.lines"), str(self.data / "go"), str(fails)]

    def submit(self, name: str, ranks: int = 1, fails: int = 0, max_restarts: int = 0) -> None:
        self.ids[name] = name
        command = ["python", str(self.data / "program.py"), *self.words(name, fails)]
        spec = jobs_pb2.JobSpec(
            name=name,
            kind="training",
            owner="alice",
            ranks=ranks,
            command=command,
            working_directory=str(self.data),
            max_restarts=max_restarts,
            grace_seconds=1,
        )
        self.service.submit(name, spec)

    def lines(self, name: str) -> list[str]:
        path = self.data / f"{name}.lines"
        return path.read_text().splitlines() if path.exists() else []

    def job(self, name: str) -> jobs_pb2.Job:
        (job,) = self.service.jobs([self.ids[name]])
        return job

    def kept(self) -> Iterator[Path]:
        """Attempts that have a keeper, which has not said how they ended."""
        for path in (self.home / "jobs").glob("*/keeper-attempt-*/keeper.json"):
            if not path.with_name("outcome.json").exists():
                yield path

    def end_processes_of_jobs(self, how: signal.Signals) -> int:
        """Keepers and ranks, none before the others as far as we can; how many keepers."""
        pids = [json.loads(path.read_text())["pid"] for path in self.kept()]
        ranks = [rank for pid in pids for rank in processes.descendants(pid)]
        processes.send_signal([*pids, *ranks], how)
        until(lambda: all(processes.start_time(pid) is None for pid in (*pids, *ranks)))
        return len(pids)

    def boot(self) -> None:
        """What of a former boot is noted is of a former boot, whatever process has those numbers now."""
        for path in self.kept():
            facts = json.loads(path.read_text())
            path.write_text(json.dumps({**facts, "boot_id": "a former one", "pid": os.getpid()}))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def room(tmp_path: Path, database_url: str) -> Iterator[Room]:
    made = Room(tmp_path / "home", database_url)
    yield made
    made.service.close()
    for path in (tmp_path / "home" / "jobs").glob("*/attempt-*"):
        processes.send_signal(processes.left_behind(-1, f"DLMESH_JOB_DIR={path}"), KILL)


@pytest.mark.parametrize("how", [TERM, KILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize(
    ("what", "down_seconds"),
    [("service", 0.0), ("service", 1.2), ("jobs", 0.0), ("everything", 0.0), ("everything", 1.2)],
)
def test_all_go_on_and_end_once(room: Room, what: str, how: signal.Signals, down_seconds: float) -> None:
    room.begin()
    if what != "jobs":
        assert room.service.end(how) == (0 if how is TERM else -KILL)
    # The pause is short: on a slow machine it may be over before the processes are hit.
    hit = room.end_processes_of_jobs(how) - 2 if what != "service" else 0
    if what == "everything":
        room.boot()
    if what != "jobs":
        # While nobody is there.
        time.sleep(down_seconds)
        room.service.start()
    lost = what != "service"
    until(lambda: len(room.lines(EXEC)) == 1 + lost and len(room.lines(GANG)) == 2 + 2 * lost)
    assert room.lines(WAITING) == []
    (room.data / "go").touch()
    until(lambda: all(room.job(name).state in ("FINISHED", "ERROR", "KILLED") for name in room.ids))
    jobs = asyncio.run(rows_of(room))
    assert {job.state.value for job in jobs.values()} == {"FINISHED"}, [job.reason for job in jobs.values()]
    counts = {name: (job.attempt, job.program_failures, job.platform_losses) for name, job in jobs.items()}
    went_on = (2, 0, 1) if lost else (1, 0, 0)
    assert counts == {EXEC: went_on, GANG: went_on, WAITING: (1, 0, 0), PAUSING: (3 + hit, 2, hit)}
    assert sorted(room.lines(GANG)) == (["1 0", "1 1", "2 0", "2 1"] if lost else ["1 0", "1 1"])
    assert sorted(room.lines(WAITING)) == [f"1 {rank}" for rank in range(4)]
    assert room.lines(PAUSING)[:2] == ["1 0", "2 0"]
    assert room.lines(PAUSING)[-1] == f"{3 + hit} 0"
    assert len(room.lines(PAUSING)) in (3, 3 + hit)
    assert room.service.exec_state(room.ids[EXEC]) == "FINISHED"


async def rows_of(room: Room) -> dict[str, Job]:
    database = Database(room.database_url, "scheduling")
    try:
        found = {job.id: job for job in await SqlJobs(database).find([*room.ids.values()])}
    finally:
        await database.close()
    return {name: found[job_id] for name, job_id in room.ids.items()}
