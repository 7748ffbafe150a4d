"""The service is killed around every write and every call of the engine: a resize goes on as if it was not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scheduling_service.domain.job import InstanceGroup, Job, Spec, State
from scheduling_service.engines.base import Observation, Phase, RankOutcome
from scheduling_service.engines.runner import JobFiles
from scheduling_service.storage.groups import LOCAL_ID
from scheduling_service.storage.jobs import SqlJobs
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
        return Observation(Phase.RUNNING if key in self.launched else Phase.UNKNOWN)

    async def stop(self, job: Job, group: Any) -> None:
        if (job.id, job.attempt) in self.launched:
            self.end(job.id, Phase.STOPPED, 143)
        else:
            self.ended[job.id, job.attempt] = Observation(Phase.STOPPED)

    def end(self, job_id: str, phase: Phase, code: int) -> None:
        """The newest attempt ends so, if it has not yet."""
        newest = max((key for key in self.launched if key[0] == job_id), default=None)
        if newest is not None:
            ranks = [RankOutcome(rank, 100 + rank, code) for rank in range(self.launched[newest])]
            self.ended.setdefault(newest, Observation(phase, ranks=ranks))


@dataclass
class LocalGroup:
    slots: int

    async def all(self) -> list[InstanceGroup]:
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
async def jobs(tmp_path: Path) -> Any:
    database = Database(f"sqlite:///{tmp_path}/jobs.sqlite", "scheduling")
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

    async def until(self, **wanted: tuple[State, int]) -> None:
        """Until each job has this state and so many ranks."""
        for _ in range(20):
            rows = await self._jobs.find(wanted)
            found = {job.id: (job.state, job.current_ranks) for job in rows}
            if found == wanted and all((job.id, job.attempt) in self._engine.launched for job in rows):
                return
            self._clock += timedelta(seconds=2)
            try:
                await self._loop.step()
            except KilledError:
                self.deaths += 1
                self._loop = self._begin()
        raise AssertionError(f"{found} instead of {wanted}")


@pytest.mark.slow
async def test_a_resize_survives_a_kill_anywhere(tmp_path: Path, jobs: SqlJobs) -> None:
    deaths = 0
    for kill_at in range(1, 200):
        engine = PlayedEngine(slots=2)
        service = Service(jobs, engine, tmp_path / "jobs", kill_at)
        await jobs.add(Job("e", spec("E", 2, min_ranks=1), LOCAL_ID, utc_now()))
        await service.until(e=(State.RUNNING, 2))
        await jobs.add(Job("x", spec("X", 1), LOCAL_ID, utc_now()))
        await service.until(e=(State.RUNNING, 1), x=(State.RUNNING, 1))
        engine.end("x", Phase.FINISHED, 0)
        await service.until(e=(State.RUNNING, 2), x=(State.FINISHED, 1))
        engine.end("e", Phase.FINISHED, 0)
        await service.until(e=(State.FINISHED, 2))
        (job,) = await jobs.find(["e"])
        assert (job.program_failures, job.platform_losses) == (0, 0)
        for job_id in ("e", "x"):
            await jobs.delete(job_id)
        deaths += service.deaths
        if not service.deaths:
            break
    assert deaths == kill_at - 1
    assert deaths > 30


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


async def test_jobs_that_ran_before_the_migration_keep_their_slots(tmp_path: Path) -> None:
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    url = f"sqlite:///{tmp_path}/old.sqlite"
    database = Database(url, "scheduling")

    def before(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "20261123_1400")
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
