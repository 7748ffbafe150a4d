"""The service is killed around every write and every call of the engine: all goes on as if it was not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Rank, Spec, State
from scheduling_service.domain.planning import plan
from scheduling_service.engines.base import Observation, Phase
from scheduling_service.engines.runner import JobFiles
from scheduling_service.storage.groups import LOCAL_ID
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases import run_queue
from scheduling_service.usecases.run_queue import RunQueue
from scheduling_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.errors import ServiceError
from servicekit.times import utc_now


class KilledError(BaseException):
    """The process ends here; nothing may catch it."""


@dataclass
class PlayedEngine:
    """Gangs that end with 143 when they are asked to; what it knows outlives the service, as a keeper does."""

    slots: int
    launched: dict[tuple[str, int], int] = field(default_factory=dict)
    ended: dict[tuple[str, int], Observation] = field(default_factory=dict)
    # Why what was launched has not begun.
    starting: str = ""

    def due(self, running: Any) -> list[Job]:
        return list(running)

    async def launch(self, job: Job, group: Any) -> None:
        if (job.id, job.attempt) in self.ended:
            return
        self.launched.setdefault((job.id, job.attempt), job.current_ranks)
        running = {key: ranks for key, ranks in self.launched.items() if key not in self.ended}
        assert sum(running.values()) <= self.slots
        assert len({job_id for job_id, _ in running}) == len(running), "two attempts of a job run at once"

    async def observe(self, job: Job, group: Any) -> Observation:
        key = (job.id, job.attempt)
        if key in self.ended:
            return self.ended[key]
        if key in self.launched:
            return Observation(Phase.STARTING if self.starting else Phase.RUNNING, self.starting)
        return Observation(Phase.UNKNOWN)

    async def stop(self, job: Job, group: Any) -> None:
        if (job.id, job.attempt) in self.launched:
            self.end(job.id, Phase.STOPPED, 143)
        else:
            self.ended[job.id, job.attempt] = Observation(Phase.STOPPED)

    def end(self, job_id: str, phase: Phase, code: int) -> None:
        """The newest attempt ends so, if it has not yet."""
        newest = max((key for key in self.launched if key[0] == job_id), default=None)
        if newest is not None:
            ranks = [Rank(rank, 100 + rank, code) for rank in range(self.launched[newest])]
            self.ended.setdefault(newest, Observation(phase, ranks=ranks))


@dataclass
class LocalGroup:
    slots: int

    async def all(self, *, fresh: bool = False) -> list[InstanceGroup]:
        return [InstanceGroup(LOCAL_ID, "local", self.slots)]

    async def shares(self, group_id: str) -> list[Any]:
        return []

    async def set_runs_next(self, group_id: str, name: str) -> None:
        pass


class Mortal:
    """Counts the calls that change something and kills the service around one of them."""

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner, self._fate = inner, fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in {"begin", "save", "report", "launch", "stop", "observe"}:
            return method

        async def call(*arguments: Any) -> Any:
            self._fate.meet()
            answer = await method(*arguments)
            self._fate.meet()
            return answer

        return call


@dataclass
class Fate:
    kill_at: int
    met: int = 0

    def meet(self) -> None:
        self.met += 1
        if self.met == self.kill_at:
            raise KilledError


@pytest.fixture
async def jobs(database_url: str) -> Any:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    yield SqlJobs(database)
    await database.close()


def spec(name: str, ranks: int, min_ranks: int = 0) -> Spec:
    return Spec(name, "training", "ann", ranks, ["true"], min_ranks=min_ranks)


class Service:
    """The queue's loop, started anew after its one death; every step takes two seconds of a played clock."""

    def __init__(self, jobs: SqlJobs, engine: PlayedEngine, directory: Path, kill_at: int) -> None:
        self._jobs, self._engine, self._files = jobs, engine, JobFiles(directory)
        self.fate = Fate(kill_at)
        self.deaths = 0
        self._clock = utc_now()
        self._loop = self._begin()

    def _begin(self) -> RunQueue:
        jobs, engine = Mortal(self._jobs, self.fate), Mortal(self._engine, self.fate)
        groups = LocalGroup(self._engine.slots)
        return RunQueue(jobs, groups, engine, self._files, lambda: self._clock, "me", grow_after_seconds=5.0)

    def pass_seconds(self, seconds: float) -> None:
        self._clock += timedelta(seconds=seconds)

    async def until(self, **wanted: tuple[State, int]) -> None:
        """Until each job has this state and so many ranks."""

        def so(rows: Sequence[Job]) -> bool:
            found = {job.id: (job.state, job.current_ranks) for job in rows}
            return found == wanted and all((job.id, job.attempt) in self._engine.launched for job in rows)

        await self._until(so, wanted)

    async def step(self) -> None:
        await self._loop.step()

    async def until_reason(self, job_id: str, reason: str) -> None:
        await self._until(lambda rows: rows[0].waits_because == reason, [job_id])

    async def until_cause(self, job_id: str, reason: str) -> None:
        await self._until(lambda rows: rows[0].reason == reason, [job_id])

    async def until_attempt(self, job_id: str, attempt: int) -> None:
        """Until it is launched for the so-many-th time."""
        await self._until(lambda rows: (job_id, attempt) in self._engine.launched, [job_id])

    async def until_ended(self, **wanted: State) -> None:
        """Until each job has this state, launched or not."""
        await self._until(lambda rows: {job.id: job.state for job in rows} == wanted, wanted)

    async def _until(self, so: Callable[[Sequence[Job]], bool], job_ids: Collection[str]) -> None:
        for _ in range(20):
            rows = await self._jobs.find(job_ids)
            if so(rows):
                return
            self._clock += timedelta(seconds=2)
            try:
                await self._loop.step()
            except KilledError:
                self.deaths += 1
                self._loop = self._begin()
        raise AssertionError(f"{rows} instead of {job_ids}")


async def resized(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("e", spec("E", 2, min_ranks=1), LOCAL_ID, utc_now()))
    await service.until(e=(State.RUNNING, 2))
    await jobs.add(Job("x", spec("X", 1), LOCAL_ID, utc_now()))
    await service.until(e=(State.RUNNING, 1), x=(State.RUNNING, 1))
    engine.end("x", Phase.FINISHED, 0)
    await service.until(e=(State.RUNNING, 2), x=(State.FINISHED, 1))
    engine.end("e", Phase.FINISHED, 0)
    await service.until(e=(State.FINISHED, 2))
    await unharmed(jobs, "e", "x")


async def suspended(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("e", spec("E", 2, min_ranks=1), LOCAL_ID, utc_now()))
    await service.until(e=(State.RUNNING, 2))
    service.pass_seconds(61)
    await jobs.add(Job("x", replace(spec("X", 2), priority=50), LOCAL_ID, utc_now()))
    await service.until(e=(State.SUBMITTED, 2), x=(State.RUNNING, 2))
    engine.end("x", Phase.FINISHED, 0)
    await service.until(e=(State.RUNNING, 2), x=(State.FINISHED, 2))
    engine.end("e", Phase.FINISHED, 0)
    await service.until(e=(State.FINISHED, 2))
    await unharmed(jobs, "e", "x")


async def retried(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("r", replace(spec("R", 1), max_restarts=1), LOCAL_ID, utc_now()))
    await service.until(r=(State.RUNNING, 1))
    engine.end("r", Phase.FAILED, 3)
    await service.until_attempt("r", 2)
    engine.end("r", Phase.FAILED, 3)
    await service.until(r=(State.ERROR, 1))
    (job,) = await jobs.find(["r"])
    assert (job.attempt, job.program_failures, job.platform_losses) == (2, 2, 0)


async def followed(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("a", spec("A", 1), LOCAL_ID, utc_now()))
    for job_id, other in (("b", "a"), ("c", "b"), ("d", "c")):
        await jobs.add(Job(job_id, replace(spec(job_id, 1), after=[other]), LOCAL_ID, utc_now(), waits_for=[other]))
    await service.until(a=(State.RUNNING, 1))
    engine.end("a", Phase.FINISHED, 0)
    await service.until(a=(State.FINISHED, 1), b=(State.RUNNING, 1))
    engine.end("b", Phase.FAILED, 65)
    await service.until_ended(a=State.FINISHED, b=State.ERROR, c=State.ERROR, d=State.ERROR)
    assert not {"c", "d"} & {job_id for job_id, _ in engine.launched}


async def stopped(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("s", spec("S", 2), LOCAL_ID, utc_now()))
    await service.until(s=(State.RUNNING, 2))
    await jobs.add(Job("w", spec("W", 1), LOCAL_ID, utc_now()))
    await jobs.request_stop("s")
    await service.until(s=(State.KILLED, 2), w=(State.RUNNING, 1))
    engine.end("w", Phase.FINISHED, 0)
    await service.until(w=(State.FINISHED, 1))


async def lost(service: Service, jobs: SqlJobs, engine: PlayedEngine) -> None:
    await jobs.add(Job("m", spec("M", 2), LOCAL_ID, utc_now()))
    await service.until(m=(State.RUNNING, 2))
    engine.end("m", Phase.LOST, -9)
    await service.until_attempt("m", 2)
    engine.end("m", Phase.FINISHED, 0)
    await service.until(m=(State.FINISHED, 2))
    (job,) = await jobs.find(["m"])
    assert (job.attempt, job.program_failures, job.platform_losses) == (2, 0, 1)


async def unharmed(jobs: SqlJobs, *job_ids: str) -> None:
    for job in await jobs.find(job_ids):
        assert (job.program_failures, job.platform_losses) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("what_happens", [resized, suspended, retried, followed, stopped, lost])
async def test_every_job_ends_as_undisturbed_wherever_the_service_is_killed(
    tmp_path: Path, jobs: SqlJobs, what_happens: Callable[[Service, SqlJobs, PlayedEngine], Awaitable[None]]
) -> None:
    deaths = 0
    for kill_at in range(1, 200):
        engine = PlayedEngine(slots=2)
        service = Service(jobs, engine, tmp_path / "jobs", kill_at)
        await what_happens(service, jobs, engine)
        for job_id in "abcdemrswx":
            await jobs.delete(job_id)
        deaths += service.deaths
        if not service.deaths:
            break
    assert deaths == kill_at - 1
    assert deaths > 10


async def test_a_gang_that_is_resized_before_it_came_to_be_starts_all_the_same(tmp_path: Path, jobs: SqlJobs) -> None:
    job = Job("e", spec("E", 2, min_ranks=1), LOCAL_ID, utc_now())
    await jobs.add(job)
    job.start(1, utc_now())
    job.resize("grows from 1 to 2 ranks")
    await jobs.begin(job)
    await Service(jobs, PlayedEngine(slots=2), tmp_path / "jobs", 0).until(e=(State.RUNNING, 2))
    (job,) = await jobs.find(["e"])
    assert job.attempt == 2


async def test_a_loop_that_is_being_replaced_cannot_turn_a_job_back(jobs: SqlJobs) -> None:
    now = utc_now()
    await jobs.add(Job("j", replace(spec("J", 1), max_restarts=1), LOCAL_ID, now))
    (job,) = await jobs.active()
    job.start(1, now)
    await jobs.begin(job)
    (old,), (new,) = await jobs.active(), await jobs.active()
    new.fail_program("rank 0 exited with code 3", now, now)
    await jobs.save(new)
    new.start(1, now)
    await jobs.begin(new)
    old.lose("gone", now, now)
    with pytest.raises(ServiceError, match="attempt 1 is over"):
        await jobs.save(old)
    new.finish(now)
    await jobs.save(new)
    old.start(1, now)
    with pytest.raises(ServiceError):
        await jobs.begin(old)
    (job,) = await jobs.find(["j"])
    assert (job.state, job.attempt) == (State.FINISHED, 2)


def migrate_to(connection: Any, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def test_what_jobs_waited_for_before_the_migration_is_told_apart(database_url: str) -> None:
    import sqlalchemy as sa

    told = {
        "a": ("SUBMITTED", 0, "needs 2 slots (of 4)"),
        "b": ("SUBMITTED", 1, "rank 0 exited with code 1; restart 1 of 2 (pauses 5 s)"),
        "c": ("RUNNING", 1, "(Spark has no room)"),
        "d": ("RUNNING", 2, "shrinks from 2 to 1 rank :)"),
        "e": ("ERROR", 1, "lost (for good)"),
    }
    database = Database(database_url, "scheduling")
    async with database.engine.begin() as connection:
        if database_url.startswith("postgresql"):
            await connection.execute(sa.text("CREATE SCHEMA scheduling"))
        await connection.run_sync(migrate_to, "20261126T2320")
        table = await connection.run_sync(lambda it: sa.Table("jobs", sa.MetaData(), autoload_with=it))
        filler: dict[type, Any] = {int: 0, bool: False, str: "", object: {}, dict: {}, datetime: utc_now()}
        for number, (job_id, (state, attempt, reason)) in enumerate(told.items()):
            rest = {it.name: filler[it.type.python_type] for it in table.columns if not it.nullable}
            own = {"id": job_id, "sequence": number, "state": state, "attempt": attempt, "reason": reason}
            await connection.execute(table.insert().values({**rest, **own}))
        await connection.run_sync(migrate_to, "head")
        found = await connection.execute(sa.text("SELECT id, reason, waits_because FROM jobs ORDER BY id"))
        assert [tuple(row) for row in found] == [
            ("a", "", "needs 2 slots (of 4)"),
            ("b", "rank 0 exited with code 1; restart 1 of 2", "pauses 5 s"),
            ("c", "", "Spark has no room"),
            ("d", "shrinks from 2 to 1 rank :)", ""),
            ("e", "lost (for good)", ""),
        ]
    await database.close()


async def test_jobs_that_ran_before_the_migration_keep_their_slots(tmp_path: Path) -> None:
    import sqlalchemy as sa

    url = f"sqlite:///{tmp_path}/old.sqlite"
    database = Database(url, "scheduling")

    def before(connection: sa.Connection) -> None:
        migrate_to(connection, "20261123_1400")
        names = "id, sequence, owner, group_id, spec, name, model, dataset, slots, state, reason, attempt"
        more = "program_failures, platform_losses, stop_requested, progress, result_json, log_tail, ranks, created_at"
        row = """'j', 1, 'ann', 'g', '{"name":"n","kind":"k","owner":"ann","ranks":3,"command":["x"]}', 'n', '', '', 3,
            'RUNNING', '', 1, 0, 0, 0, '{}', '', '', '[]', '2026-01-01 00:00:00'"""
        connection.exec_driver_sql(f"INSERT INTO jobs ({names}, {more}) VALUES ({row})")

    async with database.engine.begin() as connection:
        await connection.run_sync(before)
    await database.migrate(MIGRATIONS)
    (job,) = await SqlJobs(database).active()
    assert (job.current_ranks, job.resizing, job.spec.is_elastic) == (3, False, False)
    await database.close()


async def test_what_takes_long_to_begin_says_why_and_runs_from_when_it_did(tmp_path: Path, jobs: SqlJobs) -> None:
    engine = PlayedEngine(slots=2)
    service = Service(jobs, engine, tmp_path / "jobs", 0)
    await jobs.add(Job("e", spec("E", 2, min_ranks=1), LOCAL_ID, utc_now()))
    await service.until(e=(State.RUNNING, 2))
    (launched,) = await jobs.find(["e"])
    engine.starting = "Spark has no room for the driver"
    await service.until_reason("e", "Spark has no room for the driver")
    service.pass_seconds(30)
    await service.step()
    engine.starting = ""
    await service.until_reason("e", "")
    (begun,) = await jobs.find(["e"])
    assert begun.attempt_started_at is not None
    assert launched.attempt_started_at is not None
    assert (begun.attempt_started_at - launched.attempt_started_at).total_seconds() >= 30


async def test_what_cannot_be_launched_pauses_and_ends_in_the_end(tmp_path: Path, jobs: SqlJobs) -> None:
    engine = PlayedEngine(slots=2)
    service = Service(jobs, engine, tmp_path / "jobs", 0)
    launch = engine.launch

    async def refuse(job: Job, group: Any) -> None:
        raise OSError("no room for its files")

    engine.launch = refuse  # type: ignore[method-assign]
    await jobs.add(Job("u", spec("U", 2), LOCAL_ID, utc_now()))
    reason = "it could not be launched: no room for its files; started again"
    await service.until_cause("u", reason)
    engine.launch = launch  # type: ignore[method-assign]
    await service.until(u=(State.RUNNING, 2))
    (job,) = await jobs.find(["u"])
    assert job.program_failures == 0
    assert job.platform_losses >= 1


async def test_those_that_wait_for_a_job_start_though_its_end_went_wrong_once(tmp_path: Path, jobs: SqlJobs) -> None:
    engine = PlayedEngine(slots=2)
    service = Service(jobs, engine, tmp_path / "jobs", 0)
    await jobs.add(Job("a", spec("A", 1), LOCAL_ID, utc_now()))
    await jobs.add(Job("b", replace(spec("B", 1), after=["a"]), LOCAL_ID, utc_now(), waits_for=["a"]))
    await service.until(a=(State.RUNNING, 1))
    save, went_wrong = jobs.save, []

    async def save_and_fail_once(job: Job) -> None:
        await save(job)
        if job.id == "a" and not went_wrong:
            went_wrong.append(job)
            raise OSError("database is locked")

    jobs.save = save_and_fail_once  # type: ignore[method-assign]
    engine.end("a", Phase.FINISHED, 0)
    await service.until(a=(State.FINISHED, 1), b=(State.RUNNING, 1))
    assert went_wrong


async def test_a_gang_whose_row_no_ledger_takes_is_stopped_and_its_slots_are_free(
    tmp_path: Path, jobs: SqlJobs
) -> None:
    engine = PlayedEngine(slots=2)
    await jobs.add(Job("a", spec("A", 2), LOCAL_ID, utc_now()))
    await Service(jobs, engine, tmp_path / "jobs", 0).until(a=(State.RUNNING, 2))
    (running,) = await jobs.find(["a"])
    running.gpus = [[["no", "device"]]]  # type: ignore[list-item]
    await jobs.save(running)
    await jobs.add(Job("b", spec("B", 2), LOCAL_ID, utc_now()))
    service = Service(jobs, engine, tmp_path / "jobs", 0)
    await service.until(a=(State.ERROR, 2), b=(State.RUNNING, 2))
    (ended,) = await jobs.find(["a"])
    assert ended.reason.startswith("it cannot be queued")


async def test_a_stop_of_both_kills_who_waits_for_whom(tmp_path: Path, jobs: SqlJobs) -> None:
    service = Service(jobs, PlayedEngine(slots=2), tmp_path / "jobs", 0)
    await jobs.add(Job("a", spec("A", 1), LOCAL_ID, utc_now()))
    await jobs.add(Job("b", replace(spec("B", 1), after=["a"]), LOCAL_ID, utc_now(), waits_for=["a"]))
    await service.until(a=(State.RUNNING, 1))
    await jobs.request_stop("a")
    await jobs.request_stop("b")
    await service.until_ended(a=State.KILLED, b=State.KILLED)


async def test_a_group_for_which_nothing_can_be_decided_does_not_hold_up_the_others(
    tmp_path: Path, jobs: SqlJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoGroups(LocalGroup):
        async def all(self, *, fresh: bool = False) -> list[InstanceGroup]:
            return [InstanceGroup("broken", "broken", 2), *await super().all()]

    def plan_or_not(ledger: Any, *arguments: Any, **more: Any) -> Any:
        if ledger.group.id == "broken":
            raise ZeroDivisionError
        return plan(ledger, *arguments, **more)

    monkeypatch.setattr(run_queue, "plan", plan_or_not)
    engine = PlayedEngine(slots=2)
    queue = RunQueue(jobs, TwoGroups(2), engine, JobFiles(tmp_path), utc_now, "me")  # type: ignore[arg-type]
    await jobs.add(Job("b", spec("B", 1), "broken", utc_now()))
    await jobs.add(Job("g", spec("G", 1), LOCAL_ID, utc_now()))
    for _ in range(2):
        await queue.step()
    assert set(engine.launched) == {("g", 1)}
