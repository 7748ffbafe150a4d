"""Waiting for jobs to end: who is told, and what waiting costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scheduling_room
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from scheduling_service.domain.job import Job, Spec
from scheduling_service.engines.runner import JobFiles
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases import await_ends
from scheduling_service.usecases.await_ends import AwaitEnds, JobEnds
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.wiring import MIGRATIONS, LocalSettings, build
from servicekit.database import Database
from servicekit.errors import ServiceError
from servicekit.reconcile import ReconcileLoop
from servicekit.times import utc_now
from testkit.services import Client, settings_for

DEADLINE_SECONDS = 120


class CountedJobs(SqlJobs):
    looks = 0

    async def active_of(self, job_ids: Sequence[str]) -> set[str]:
        found = await super().active_of(job_ids)
        # From here on its caller waits.
        self.looks += 1
        return found


@pytest.fixture
async def room(database_url: str) -> AsyncIterator[Any]:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    jobs = CountedJobs(database)
    for number in range(3):
        await jobs.add(Job(f"j{number}", Spec("n", "trial", "ann", 1, ["true"]), LOCAL_ID, utc_now()))
    yield SimpleNamespace(jobs=jobs, ends=JobEnds())
    await database.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.005)


async def end(room: Any, job_id: str) -> None:
    (job,) = await room.jobs.find([job_id])
    job.give_up("enough", utc_now())
    await room.jobs.save(job)


# Looks of its own come too late for any of these.
NEVER = 3600.0


async def test_hundreds_that_wait_look_once_each_and_then_only_where_something_ended(room: Any) -> None:
    waits = AwaitEnds(room.jobs, room.ends, look_seconds=NEVER)
    waiting = [asyncio.create_task(waits([f"j{number % 3}", "j2"], 30.0)) for number in range(300)]
    await until(lambda: room.jobs.looks == 300)
    await end(room, "j1")
    room.ends.tell("j1")
    told = await asyncio.gather(*waiting[1::3])
    assert told == [["j1"]] * 100
    assert room.jobs.looks == 400
    assert not any(task.done() for task in [*waiting[0::3], *waiting[2::3]])
    await end(room, "j2")
    room.ends.tell("j2")
    assert await asyncio.gather(*waiting[0::3], *waiting[2::3]) == [["j2"]] * 200
    assert room.ends.awaited() == []


async def test_what_another_process_wrote_is_seen_by_one_look_for_all(room: Any) -> None:
    waits = AwaitEnds(room.jobs, room.ends, look_seconds=0.05)
    waiting = [asyncio.create_task(waits([f"j{number % 3}"], 30.0)) for number in range(30)]
    await until(lambda: room.jobs.looks >= 30)
    for job_id in ("j0", "j1", "j2"):
        await end(room, job_id)
    assert await asyncio.gather(*waiting) == [[f"j{number % 3}"] for number in range(30)]


async def test_an_end_between_the_look_and_the_wait_is_not_missed(room: Any) -> None:
    class EndsMeanwhile(CountedJobs):
        async def active_of(self, job_ids: Sequence[str]) -> set[str]:
            found = await super().active_of(job_ids)
            if self.looks == 1:
                await end(room, "j1")
                room.ends.tell("j1")
            return found

    jobs = EndsMeanwhile(room.jobs._database)
    assert await AwaitEnds(jobs, room.ends, look_seconds=NEVER)(["j0", "j1"], 30.0) == ["j1"]


async def test_a_job_that_is_deleted_is_told_of(room: Any, tmp_path: Path) -> None:
    waits = AwaitEnds(room.jobs, room.ends, look_seconds=NEVER)
    waiting = asyncio.create_task(waits(["j1"], 30.0))
    await until(lambda: room.jobs.looks == 1)
    await end(room, "j1")
    await DeleteJob(room.jobs, JobFiles(tmp_path), room.ends.tell)("j1")
    assert await waiting == ["j1"]


async def test_who_goes_away_leaves_nothing(room: Any) -> None:
    waits = AwaitEnds(room.jobs, room.ends, look_seconds=NEVER)
    waiting = asyncio.create_task(waits(["j0", "j1"], 30.0))
    await until(lambda: bool(room.ends.awaited()))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert room.ends.awaited() == []
    assert await waits(["j0"], 0.0) == []
    assert await waits([], 0.0) == []
    assert await waits(["j0", "gone", "gone"], 30.0) == ["gone"]
    with pytest.raises(ServiceError, match="at most 10000"):
        await waits(["x"] * 10_001, 1.0)


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


async def test_ends_are_told_without_anybody_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AwaitEnds, "_look", never)
    monkeypatch.setattr(await_ends, "MAX_SECONDS", NEVER)
    # Loops go on when they are woken, and only then.
    monkeypatch.setattr(ReconcileLoop, "_pause", lambda loop, outlook: NEVER)
    waits = "import pathlib, sys, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nsys.exit(CODE)"
    async with scheduling_room.service(tmp_path, slots=3) as platform:

        async def submit(job_id: str, program: str, **changes: Any) -> asyncio.Future[Any]:
            await scheduling_room.submit(platform, job_id, scheduling_room.spec(tmp_path, program, **changes))
            request = jobs_pb2.AwaitEndsRequest(job_ids=[job_id], seconds=NEVER)
            return asyncio.ensure_future(platform.jobs.AwaitEnds(request))

        waiting = [
            await submit("finishes", waits.replace("CODE", "0")),
            await submit("fails", waits.replace("CODE", "3")),
            await submit("falls", "pass", after=["fails"]),
            await submit("stops", "import time; time.sleep(600)"),
            await submit("follows", "pass", after=["finishes"]),
        ]
        await scheduling_room.until(platform, "fails", "RUNNING")
        await scheduling_room.until(platform, "stops", "RUNNING")
        (tmp_path / "data" / "go").touch()
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="stops"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            told = [job_id for answer in await asyncio.gather(*waiting) for job_id in answer.job_ids]
        states = {
            job.id: job.state for job in (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=told))).jobs
        }
    assert states == {
        **{"finishes": "FINISHED", "fails": "ERROR", "falls": "ERROR", "stops": "KILLED", "follows": "FINISHED"},
    }


async def test_a_service_that_ends_answers_those_that_wait(tmp_path: Path) -> None:
    settings = settings_for("scheduling", tmp_path)
    database = Database(settings.database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    # Of a group that starts nothing.
    groups = SqlGroups(database)
    await groups.ensure_local(1, 0)
    await groups.change("local", lambda group: replace(group, is_started=False))
    await SqlJobs(database).add(Job("j", Spec("n", "trial", "ann", 1, ["true"]), LOCAL_ID, utc_now()))
    await database.close()
    application = build(settings, local=LocalSettings(slots=1, gpus=0, warm_pool=False))
    client = Client("scheduling", await application.start(settings))
    try:
        jobs = client.stub(jobs_pb2_grpc.JobServiceStub)
        waiting = jobs.AwaitEnds(jobs_pb2.AwaitEndsRequest(job_ids=["j"], seconds=30))
        # Answered once the one before it on the same connection is there.
        assert list((await jobs.AwaitEnds(jobs_pb2.AwaitEndsRequest(job_ids=["j"], seconds=0))).job_ids) == []
    finally:
        await application.stop()
    # It would have been broken off otherwise.
    assert list((await waiting).job_ids) == []
    await client.close()
