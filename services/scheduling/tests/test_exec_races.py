"""Starts of exec tasks that meet a client that goes away, a stop or a deletion on their way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scheduling_service.domain.exec_arguments import ExecArguments
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.domain.job import Job, Spec, State
from scheduling_service.engines.runner import JobFiles
from scheduling_service.exec_frameworks.installed import InstalledFrameworks
from scheduling_service.storage.exec_folders import DiskExecFolders
from scheduling_service.storage.exec_results import DiskExecResults
from scheduling_service.storage.execs import SqlExecs
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases.delete_exec import DeleteAllExecs
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.exec_ports import UploadedFile
from scheduling_service.usecases.find_exec import FindExec
from scheduling_service.usecases.prepare_exec import ExecRequest, ExecSettings, PrepareExec
from scheduling_service.usecases.start_exec import InFlight, StartExec
from scheduling_service.usecases.stop_exec import StopExec
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob
from scheduling_service.usecases.tend_execs import TendExecs
from scheduling_service.wiring import MIGRATIONS
from servicekit.archives import ArchiveLimits
from servicekit.database import Database
from servicekit.errors import ServiceError, invalid
from servicekit.reconcile import Next
from servicekit.times import utc_now
from testkit.services import ADMIN, ALICE, acting_as

REQUEST = ExecRequest("", "--exec-start PyTorch --model-main main.py")
DEADLINE_SECONDS = 10


class OneFile:
    """An upload of main.py."""

    is_received = False

    async def save(self, folder: Path) -> UploadedFile:
        self.is_received = True
        folder.mkdir(parents=True)
        (folder / "f").write_text("print(1)")
        return UploadedFile(folder / "f", "main.py")

    async def discard(self) -> None:
        pass


class HeldFolders(DiskExecFolders):
    """Folders whose `held` method goes on when it is let go."""

    held = ""

    def __init__(self, root: Path) -> None:
        super().__init__(root, ArchiveLimits(), orphan_seconds=0.0)
        self.is_there, self.may_go_on = threading.Event(), threading.Event()

    def _wait(self, name: str) -> None:
        if name == self.held:
            self.is_there.set()
            assert self.may_go_on.wait(DEADLINE_SECONDS)

    def unpack(self, draft: Path, upload: UploadedFile | None, arguments: ExecArguments) -> None:
        self._wait("unpack")
        super().unpack(draft, upload, arguments)

    def publish(self, draft: Path, task_id: str, spec: ExecSpec) -> None:
        self._wait("publish")
        super().publish(draft, task_id, spec)


class Submissions:
    """SubmitJob, which fails or waits when it is told to."""

    def __init__(self, submit: SubmitJob) -> None:
        self._submit = submit
        self.error: Exception | None = None
        self.is_there, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, job_id: str, spec: Spec, instance_group: str) -> Job:
        self.is_there.set()
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        return await self._submit(job_id, spec, instance_group)


class CountedExecs(SqlExecs):
    searches = 0

    async def without_job(self) -> Any:
        self.searches += 1
        return await super().without_job()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Any]:
    database = Database(f"sqlite:///{tmp_path / 'scheduling.sqlite'}", "scheduling")
    await database.migrate(MIGRATIONS)
    groups, jobs, execs = SqlGroups(database), SqlJobs(database), CountedExecs(database)
    await groups.ensure_local(4, 0)
    folders, in_flight = HeldFolders(tmp_path / "execs"), InFlight()
    results = DiskExecResults(tmp_path / "execs", tmp_path / "exec-results", orphan_seconds=60.0)
    submit = Submissions(SubmitJob(jobs, groups, utc_now, lambda: None))
    stop = StopJob(jobs, lambda: None)
    delete = DeleteJob(jobs, JobFiles(tmp_path / "jobs"))
    tend = TendExecs(execs, folders, results, submit, stop, delete, in_flight)
    frameworks = InstalledFrameworks(tmp_path / "exec-frameworks")
    prepare = PrepareExec(folders, frameworks, groups, jobs, ExecSettings([tmp_path]), utc_now)
    start = StartExec(execs, folders, prepare, submit, in_flight, tend.look_again)
    yield SimpleNamespace(
        start=start,
        stop=StopExec(execs, FindExec(execs), submit, stop),
        delete_all=DeleteAllExecs(execs, lambda: None),
        **{"execs": execs, "jobs": jobs, "groups": groups, "folders": folders, "results": results},
        **{"submit": submit, "tend": tend, "in_flight": in_flight, "home": tmp_path},
    )
    await database.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.005)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def cut_short(room: Any, held: str) -> None:
    """A start whose client goes away while `held` is at work."""
    room.folders.held = held
    with acting_as(ALICE):
        start = asyncio.create_task(room.start(REQUEST, OneFile()))
    await until(room.folders.is_there.is_set)
    start.cancel()
    # Everything that a cancellation sets off at once has happened.
    for _ in range(20):
        await asyncio.sleep(0)
    room.folders.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: not room.in_flight.ids)


async def test_a_client_that_goes_away_while_its_task_is_published_has_all_of_it(room: Any) -> None:
    await cut_short(room, "publish")
    (job,) = await room.jobs.active()
    assert names(room.home / "execs") == [job.id]
    assert (room.home / "execs" / job.id / "code" / "main.py").read_text() == "print(1)"


async def test_a_client_that_goes_away_before_has_nothing(room: Any) -> None:
    await cut_short(room, "unpack")
    assert await room.jobs.active() == []
    assert names(room.home / "execs") == []


async def test_a_draft_that_is_gone_does_not_come_back_without_its_program(room: Any) -> None:
    draft = room.folders.open_draft("t1")
    room.folders.discard("t1")
    with pytest.raises(FileNotFoundError):
        room.folders.publish(draft, "t1", None)
    assert names(room.home / "execs") == []


async def test_a_task_that_is_deleted_while_it_starts_leaves_no_job(room: Any) -> None:
    room.submit.may_go_on.clear()
    with acting_as(ALICE):
        start = asyncio.create_task(room.start(REQUEST, OneFile()))
        await room.submit.is_there.wait()
        assert await room.delete_all() == 1
    assert await room.tend.step() is Next.SOON
    room.submit.may_go_on.set()
    assert (await start).state == "KILLED"
    (job,) = await room.jobs.active()
    await room.tend.step()
    (job,) = await room.jobs.find([job.id])
    assert job.stop_requested
    job.kill("stopped", utc_now())
    await room.jobs.save(job)
    assert await room.tend.step() is Next.LATER
    assert (await room.jobs.find([job.id]), await room.execs.known([job.id])) == ([], set())
    assert names(room.home / "execs") == []


async def started_but_for_its_job(room: Any) -> str:
    """A task whose submission was cut off."""
    room.submit.error = OSError("the database is away")
    with acting_as(ALICE), pytest.raises(OSError, match="away"):
        await room.start(REQUEST, OneFile())
    room.submit.error = None
    (task,) = await room.execs.without_job()
    return str(task.id)


async def test_a_stop_of_a_task_whose_submission_was_cut_off_holds(room: Any) -> None:
    task_id = await started_but_for_its_job(room)
    with acting_as(ALICE):
        await room.stop(task_id)
    await room.tend.step()
    (job,) = await room.jobs.find([task_id])
    assert job.stop_requested


async def test_a_stop_while_a_task_is_submitted_holds(room: Any) -> None:
    room.submit.may_go_on.clear()
    with acting_as(ALICE):
        start = asyncio.create_task(room.start(REQUEST, OneFile()))
        await room.submit.is_there.wait()
        (task,) = await room.execs.without_job()
        stop = asyncio.create_task(room.stop(task.id))
        room.submit.may_go_on.set()
        await asyncio.gather(start, stop)
    (job,) = await room.jobs.find([task.id])
    assert job.stop_requested


async def test_a_stop_of_a_task_that_can_never_be_submitted_removes_it(room: Any) -> None:
    task_id = await started_but_for_its_job(room)
    room.submit.error = invalid("sigid", "gone", ["local"])
    with acting_as(ALICE):
        await room.stop(task_id)
    assert await room.execs.hidden() == [task_id]


async def test_uploads_cost_the_loop_no_search_for_lost_tasks(room: Any) -> None:
    await room.tend.step()
    searches = room.execs.searches
    room.in_flight.ids.add("uploading")
    await room.tend.step()
    await room.tend.step()
    assert room.execs.searches == searches
    room.tend.look_again()
    assert await room.tend.step() is Next.LATER
    assert room.execs.searches == searches + 1


async def test_a_zip_that_came_after_its_task_had_gone_is_removed(room: Any) -> None:
    folder = room.home / "exec-results"
    folder.mkdir()
    with acting_as(ALICE):
        kept = await room.start(REQUEST, OneFile())
    for name in (f"{kept.id}.zip", "gone.zip", ".gone.12.ab", "young.zip"):
        (folder / name).touch()
        if not name.startswith("young"):
            os.utime(folder / name, (0, 0))
    await room.tend.step()
    assert names(folder) == sorted([f"{kept.id}.zip", "young.zip"])


async def test_a_task_waits_for_at_most_100_tasks_of_its_owner(room: Any) -> None:
    for number in range(101):
        await room.jobs.add(Job(f"d{number}", Spec("n", "exec", "alice", 1, ["true"]), LOCAL_ID, utc_now()))
    many = [f"d{number}" for number in range(101)]
    for user, after, says in ((ALICE, many, "at most 100"), (ADMIN, ["d0"], "ids of tasks of yours")):
        upload = OneFile()
        with acting_as(user), pytest.raises(ServiceError, match=says):
            await room.start(ExecRequest("", REQUEST.arguments, after=after), upload)
        assert not upload.is_received
    with acting_as(ALICE):
        task = await room.start(ExecRequest("", REQUEST.arguments, after=[*many[:100], *many[:50]]), OneFile())
    (job,) = await room.jobs.find([task.id])
    assert (job.spec.after, job.state) == (many[:100], State.SUBMITTED)
