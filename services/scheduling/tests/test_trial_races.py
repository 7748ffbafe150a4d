"""Starts of trials that are killed between any two steps, repeated, or deleted on their way."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scheduling_service.domain.exec_task import ExecTask
from scheduling_service.domain.job import Spec, State
from scheduling_service.engines.runner import JobFiles
from scheduling_service.exec_frameworks.installed import InstalledFrameworks
from scheduling_service.storage.exec_folders import DiskExecFolders
from scheduling_service.storage.exec_results import DiskExecResults
from scheduling_service.storage.execs import SqlExecs
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.storage.stored_uploads import DiskStoredUploads
from scheduling_service.usecases.delete_exec import DeleteAllExecs
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.prepare_exec import ExecRequest, ExecSettings, PrepareExec, TrialParts
from scheduling_service.usecases.start_exec import InFlight, StartExec
from scheduling_service.usecases.start_trial import CheckTrial, StartTrial
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob
from scheduling_service.usecases.tend_execs import TendExecs
from scheduling_service.usecases.tend_trials import DeleteTrials
from scheduling_service.wiring import MIGRATIONS
from servicekit.archives import ArchiveLimits
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next
from servicekit.times import utc_now
from testkit.services import ALICE, acting_as

LINE = "--exec-start PyTorch --model-main main.py"
REQUEST = ExecRequest("", LINE, trial=TrialParts("s1", '{"x": 1}', {"SUBID": "7"}))
ID = "0123456789abcdef" * 2
DEADLINE_SECONDS = 120


class KilledError(BaseException):
    """What a process that was killed does from then on."""


class Life:
    """Of a process that is killed after the step called `ends_after`, and held before the one called `held_before`."""

    def __init__(self, ends_after: str = "", held_before: str = "") -> None:
        self.ends_after, self.held_before = ends_after, held_before
        self.is_over = False
        self.is_there, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.steps: list[str] = []

    def parts(self, part: Any) -> Any:
        return _Part(part, self)

    def did(self, step: str) -> None:
        self.steps.append(step)
        if step == self.ends_after:
            self.is_over = True
        self.check()

    async def held(self) -> None:
        """It is at the step that it is held before."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.is_there.wait()

    def check(self) -> None:
        if self.is_over:
            raise KilledError


class _Part:
    """A part of the service as that process has it."""

    def __init__(self, part: Any, life: Life) -> None:
        self._part, self._life = part, life

    def __getattr__(self, name: str) -> Any:
        return self._living(getattr(self._part, name), name)

    def __call__(self, *arguments: Any) -> Any:
        return self._living(self._part, "submit")(*arguments)

    def _living(self, call: Any, name: str) -> Any:
        life = self._life
        if inspect.iscoroutinefunction(call) or name == "submit":

            async def step(*arguments: Any) -> Any:
                life.check()
                if name == life.held_before:
                    life.is_there.set()
                    await life.may_go_on.wait()
                result = await call(*arguments)
                life.did(name)
                return result

            return step

        def blocking_step(*arguments: Any) -> Any:
            life.check()
            result = call(*arguments)
            life.did(name)
            return result

        return blocking_step


@pytest.fixture
async def room(tmp_path: Path, database_url: str) -> AsyncIterator[Any]:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    groups, jobs, execs = SqlGroups(database), SqlJobs(database), SqlExecs(database)
    await groups.ensure_local(2, 0)
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "main.py").write_text("print(1)")
    folders = DiskExecFolders(tmp_path / "execs", ArchiveLimits())
    submit = SubmitJob(jobs, groups, utc_now, lambda: None)

    def process(life: Life) -> Any:
        """What a process of the service is made of."""
        in_flight = InFlight()
        its_execs, its_folders = life.parts(execs), life.parts(folders)
        its_submit = life.parts(submit)
        prepare = PrepareExec(
            its_folders, InstalledFrameworks(tmp_path / "f"), groups, jobs, ExecSettings([tmp_path]), utc_now
        )
        start = StartExec(its_execs, its_folders, prepare, its_submit, in_flight, lambda: None)
        results = DiskExecResults(tmp_path / "execs", tmp_path / "exec-results")
        stop, delete = StopJob(jobs, lambda: None), DeleteJob(jobs, JobFiles(tmp_path / "jobs"))
        return SimpleNamespace(
            start=StartTrial(its_execs, its_folders, start, its_submit, in_flight),
            check=CheckTrial(its_folders, prepare, submit, in_flight),
            tend=TendExecs(its_execs, its_folders, results, its_submit, stop, delete, in_flight),
            delete=DeleteTrials(its_execs, utc_now, lambda: None),
            in_flight=in_flight,
        )

    yield SimpleNamespace(
        process=process,
        upload=lambda: DiskStoredUploads(tmp_path, 1 << 20).at("tuning/main.py", "main.py"),
        **{"execs": execs, "jobs": jobs, "home": tmp_path, "database": database},
    )
    await database.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def check_whole(room: Any) -> None:
    """There is the one trial, and nothing beside it."""
    assert names(room.home / "execs") == [ID]
    assert (room.home / "execs" / ID / "code" / "main.py").read_text() == "print(1)"
    assert (room.home / "execs" / ID / "code" / "config.json").read_text() == '{"x": 1}'
    (job,) = await room.jobs.active()
    assert (job.id, job.spec.kind, job.spec.owner, job.state) == (ID, "trial", "alice", State.SUBMITTED)
    assert await room.execs.without_job() == []
    assert await room.execs.trials([ID]) == {ID}


STEPS = ("open_draft", "unpack", "find_program", "write_config", "publish", "add", "submit", "discard")


async def test_the_steps_are_these(room: Any) -> None:
    life = Life()
    process = room.process(life)
    view = await process.start(ID, "alice", REQUEST, room.upload())
    assert (view.id, view.state) == (ID, "SUBMITTED")
    assert set(STEPS) <= set(life.steps)
    assert process.in_flight.ids == set()
    await check_whole(room)


@pytest.mark.parametrize("is_tended_first", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_a_start_that_was_killed_is_made_whole_by_the_next(room: Any, step: str, is_tended_first: bool) -> None:
    with pytest.raises(KilledError):
        await room.process(Life(ends_after=step)).start(ID, "alice", REQUEST, room.upload())
    process = room.process(Life())
    if is_tended_first:
        await process.tend.step()
    await process.start(ID, "alice", REQUEST, room.upload())
    await check_whole(room)
    await process.start(ID, "alice", REQUEST, room.upload())
    await check_whole(room)


@pytest.mark.parametrize("step", STEPS)
async def test_a_check_leaves_nothing_and_disturbs_no_start(room: Any, step: str) -> None:
    process = room.process(Life(ends_after="" if step == "discard" else step))
    try:
        assert (await process.check("alice", REQUEST, room.upload())).id == LOCAL_ID
    except KilledError:
        # What is left of it is a draft, which is nobody's after a day.
        for name in names(room.home / "execs"):
            assert name.startswith(".draft-")
            os.utime(room.home / "execs" / name, (0, 0))
    after = room.process(Life())
    await after.tend.step()
    assert names(room.home / "execs") == []
    assert await room.jobs.active() == []
    await after.start(ID, "alice", REQUEST, room.upload())
    await check_whole(room)


async def test_starts_at_once_are_one_and_outlive_their_callers(room: Any) -> None:
    life = Life(held_before="add")
    process = room.process(life)
    starts = [asyncio.create_task(process.start(ID, "alice", REQUEST, room.upload())) for _ in range(3)]
    await life.held()
    starts[0].cancel()
    late = asyncio.create_task(process.start(ID, "bob", REQUEST, room.upload()))
    with pytest.raises(asyncio.CancelledError):
        await starts[0]
    life.may_go_on.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        views = await asyncio.gather(*starts[1:], late)
    assert [(view.id, view.owner) for view in views] == [(ID, "alice")] * 3
    assert life.steps.count("open_draft") == 1
    await check_whole(room)


async def test_a_start_that_is_refused_may_be_tried_again(room: Any) -> None:
    process = room.process(Life())
    for _ in range(2):
        with pytest.raises(ServiceError, match="--model-main"):
            await process.start(ID, "alice", ExecRequest("", f"{LINE}x", trial=TrialParts("s1")), room.upload())
    assert (names(room.home / "execs"), process.in_flight.ids) == ([], set())
    await process.start(ID, "alice", REQUEST, room.upload())
    await check_whole(room)


@pytest.mark.parametrize("held", ["add", "submit", "find"])
async def test_a_trial_that_is_deleted_while_it_starts_leaves_nothing(room: Any, held: str) -> None:
    life = Life(held_before=held)
    process = room.process(life)
    start = asyncio.create_task(process.start(ID, "alice", REQUEST, room.upload()))
    await life.held()
    await process.delete([ID])
    await process.tend.step()
    life.may_go_on.set()
    if held == "add":
        with pytest.raises(ServiceError, match="was deleted") as caught:
            await start
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "DELETED")
    else:
        assert (await start).state == "KILLED"
    await remove_all(room, process)
    with pytest.raises(ServiceError, match="was deleted"):
        await process.start(ID, "alice", REQUEST, room.upload())
    assert names(room.home / "execs") == []


async def remove_all(room: Any, process: Any) -> None:
    await process.tend.step()
    for job in await room.jobs.active():
        assert job.stop_requested
        job.kill("stopped", utc_now())
        await room.jobs.save(job)
    assert await process.tend.step() is Next.LATER
    assert (names(room.home / "execs"), await room.jobs.find([ID]), await room.execs.known([ID])) == ([], [], set())


async def test_deletions_and_starts_of_two_processes_leave_no_trial_alone(room: Any) -> None:
    for number in range(20):
        task_id = f"{number:032x}"
        spec = Spec("main.py", "trial", "alice", 1, ["true"], study="s1")
        task = ExecTask(task_id, "alice", LOCAL_ID, LINE, spec, utc_now(), is_trial=True)
        added, _ = await asyncio.gather(
            room.execs.add(task), room.execs.delete_trials([task_id], utc_now()), return_exceptions=True
        )
        assert added is None or (isinstance(added, ServiceError) and added.reason == "DELETED")
        # Not added, or hidden: in no case there for good.
        assert await room.execs.trials([task_id]) == set()
        assert await room.execs.was_deleted(task_id)
        assert await room.execs.known([task_id]) == ({task_id} if added is None else set())


async def test_deleted_ids_are_forgotten_after_a_while(room: Any) -> None:
    process = room.process(Life())
    many = [f"{number:032x}" for number in range(2500)]
    await process.delete(many)
    await process.delete(many[:3])
    assert await room.execs.was_deleted(many[-1])
    await room.execs.forget_deleted(utc_now())
    assert not await room.execs.was_deleted(many[-1])


async def test_lists_of_a_users_tasks_leave_trials_alone(room: Any) -> None:
    process = room.process(Life())
    await process.start(ID, "alice", REQUEST, room.upload())
    assert [list(await room.execs.visible(owner, None, 9)) for owner in (None, "alice")] == [[], []]
    with acting_as(ALICE):
        assert await DeleteAllExecs(room.execs, lambda: None)() == 0
    view = await room.execs.find(ID)
    assert view is not None
    await check_whole(room)
