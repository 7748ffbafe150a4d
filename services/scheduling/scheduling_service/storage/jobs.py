"""The table of jobs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import conflict
from servicekit.leases import claim
from servicekit.texts import storable
from sqlalchemy.exc import IntegrityError

from scheduling_service.domain.job import Job, Progress, Rank, Reported, Spec, State
from scheduling_service.storage.tables import ACTIVE, COUNTERS, JOBS, LEASES
from scheduling_service.usecases.ports import Query, SortKey

MAX_PHASE_CHARACTERS = 200
MAX_WARNING_CHARACTERS = 500
# Fixed at submission, or written by users and workers while the loop works.
_NOT_THE_LOOPS = (
    *("id", "owner", "spec", "group_id", "created_at", "name", "model", "dataset", "framework", "slots", "fewest_slots"),
    *("stop_requested", "progress", "result_json", "warning"),
)
_SORT_COLUMNS = {
    SortKey.ID: JOBS.c.id,
    SortKey.NAME: JOBS.c.name,
    SortKey.STATE: JOBS.c.state,
    SortKey.OWNER: JOBS.c.owner,
    SortKey.SUBMITTED: JOBS.c.sequence,
    SortKey.ENDED: JOBS.c.ended_at,
    SortKey.SLOTS: JOBS.c.slots,
    SortKey.MODEL: JOBS.c.model,
    SortKey.DATASET: JOBS.c.dataset,
}


class SqlJobs:
    """`usecases.ports.Jobs` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: Job) -> Job:
        known = await self.find([job.id])
        if known:
            return known[0]
        try:
            async with self._database.session() as session:
                # The row stays locked until the end: numbers become visible in their order, and the loop reads on from
                # the last one that it saw.
                count = sa.update(COUNTERS).where(COUNTERS.c.id == "jobs").values(value=COUNTERS.c.value + 1)
                job.sequence = (await session.execute(count.returning(COUNTERS.c.value))).scalar_one()
                await session.execute(sa.insert(JOBS).values(**_row(job), sequence=job.sequence))
            return job
        except IntegrityError:
            # The same submission, twice at once.
            return (await self.find([job.id]))[0]

    async def find(self, job_ids: Collection[str]) -> Sequence[Job]:
        return await self._select(JOBS.c.id.in_(list(job_ids)))

    async def active(self) -> Sequence[Job]:
        return await self._select(JOBS.c.state.in_(ACTIVE))

    async def search(self, query: Query) -> tuple[Sequence[Job], int]:
        condition = sa.and_(sa.true(), *_conditions(query))
        column = _SORT_COLUMNS[query.sort]
        order = [column.desc() if query.descending else column, JOBS.c.sequence.desc()]
        page = sa.select(JOBS).where(condition).order_by(*order).offset(query.start)
        if query.length is not None:
            page = page.limit(query.length)
        async with self._database.session(read_only=True) as session:
            total = await session.scalar(sa.select(sa.func.count()).select_from(JOBS).where(condition))
            rows = (await session.execute(page)).mappings().all()
        return [_job(dict(row)) for row in rows], total or 0

    async def begin(self, job: Job) -> None:
        await self._save(job, job.attempt - 1, result_json="", warning="")

    async def save(self, job: Job) -> None:
        await self._save(job, job.attempt)

    async def _save(self, job: Job, attempt: int, **more: str) -> None:
        values = _row(job)
        for fixed_or_theirs in _NOT_THE_LOOPS:
            del values[fixed_or_theirs]
        as_it_was = sa.and_(JOBS.c.id == job.id, JOBS.c.attempt == attempt, JOBS.c.state.in_(ACTIVE))
        async with self._database.session() as session:
            result = await session.execute(sa.update(JOBS).where(as_it_was).values(**values, **more))
        if isinstance(result, sa.CursorResult) and result.rowcount != 1:
            raise conflict(f"job {job.id} went on meanwhile: attempt {attempt} is over")

    async def request_stop(self, job_id: str) -> None:
        async with self._database.session() as session:
            await session.execute(
                sa.update(JOBS).where(JOBS.c.id == job_id, JOBS.c.state.in_(ACTIVE)).values(stop_requested=True)
            )

    async def report(self, job_id: str, attempt: int, reported: Reported) -> None:
        progress = reported.progress
        values: dict[str, Any] = {}
        # Programs say all of it; what no database takes would come again and again, and the job would never end.
        if progress is not None and math.isfinite(progress.done) and math.isfinite(progress.total):
            values["progress"] = {**asdict(progress), "phase": storable(progress.phase[:MAX_PHASE_CHARACTERS])}
        if reported.result_json is not None:
            values["result_json"] = storable(reported.result_json)
        if reported.warning is not None:
            values["warning"] = storable(reported.warning[:MAX_WARNING_CHARACTERS])
        if values:
            mine = sa.and_(JOBS.c.id == job_id, JOBS.c.attempt == attempt, JOBS.c.state.in_(ACTIVE))
            async with self._database.session() as session:
                await session.execute(sa.update(JOBS).where(mine).values(**values))

    async def delete(self, job_id: str) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(JOBS).where(JOBS.c.id == job_id))

    async def lead(self, holder: str, seconds: float, now: datetime) -> bool:
        async with self._database.session() as session:
            return await claim(session, LEASES, "queue", holder, seconds, now)

    async def _select(self, condition: sa.ColumnElement[bool]) -> Sequence[Job]:
        query = sa.select(JOBS).where(condition).order_by(JOBS.c.sequence)
        async with self._database.session(read_only=True) as session:
            rows = (await session.execute(query)).mappings().all()
        return [_job(dict(row)) for row in rows]


def _conditions(query: Query) -> Iterator[sa.ColumnElement[bool]]:
    if query.owner is not None:
        yield JOBS.c.owner == query.owner
    if query.ids:
        yield JOBS.c.id.in_(list(query.ids))
    if query.name:
        yield JOBS.c.name == query.name
    if query.states:
        yield JOBS.c.state.in_(list(query.states))
    if query.group_id is not None:
        yield JOBS.c.group_id == query.group_id
    if query.search:
        columns = (JOBS.c.name, JOBS.c.id, JOBS.c.model)
        yield sa.or_(*(column.icontains(query.search, autoescape=True) for column in columns))


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "owner": job.spec.owner,
        "group_id": job.group_id,
        "spec": {
            **asdict(job.spec),
            "command": list(job.spec.command),
            "environment": dict(job.spec.environment),
            "after": list(job.spec.after),
        },
        "name": job.spec.application_name or job.spec.name,
        "model": job.spec.model,
        "dataset": job.spec.dataset,
        "framework": job.spec.framework,
        "slots": job.spec.ranks,
        "fewest_slots": job.spec.fewest_ranks,
        "state": job.state.value,
        "reason": storable(job.reason),
        "attempt": job.attempt,
        "program_failures": job.program_failures,
        "platform_losses": job.platform_losses,
        "stop_requested": job.stop_requested,
        "not_before": job.not_before,
        "progress": asdict(job.progress),
        "result_json": job.result_json,
        "warning": job.warning,
        "log_tail": storable(job.log_tail),
        "ranks": [asdict(rank) for rank in job.ranks],
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "current_ranks": job.current_ranks,
        "resizing": job.resizing,
        "attempt_started_at": job.attempt_started_at,
        "gpus": [list(devices) for devices in job.gpus],
        "application_id": job.application_id,
        "driver_id": job.driver_id,
    }


def _job(row: dict[str, Any]) -> Job:
    for shadow in ("owner", "name", "model", "dataset", "framework", "slots", "fewest_slots"):
        del row[shadow]
    row["spec"] = Spec(**row["spec"])
    row["state"] = State(row["state"])
    row["progress"] = Progress(**row["progress"])
    row["ranks"] = [Rank(**rank) for rank in row["ranks"]]
    return Job(**row)
