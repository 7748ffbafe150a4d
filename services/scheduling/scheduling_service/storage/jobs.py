"""The table of jobs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import conflict
from servicekit.leases import claim
from servicekit.texts import storable
from workerkit.spool import MAX_SERIES, MAX_SERIES_LENGTH

from scheduling_service.domain.job import Job, Progress, Rank, Reported, Spec, State
from scheduling_service.storage import application_search
from scheduling_service.storage.tables import ACTIVE, COUNTERS, JOBS, LEASES
from scheduling_service.usecases.ports import Query

# Submissions in one transaction.
MAX_BATCH = 200
# Both databases limit the parameters of one statement.
IDS_PER_STATEMENT = 1000
MAX_PHASE_CHARACTERS = 200
MAX_WARNING_CHARACTERS = 500
# Fixed at submission, or written by users and workers while the loop works.
_NOT_THE_LOOPS = (
    *(
        "id",
        "owner",
        "spec",
        "group_id",
        "created_at",
        "name",
        "model",
        "dataset",
        "framework",
        "slots",
        "fewest_slots",
        "priority",
        "study",
    ),
    *("stop_requested", "progress", "result_json", "warning", "not_finite_series"),
)


class SqlJobs:
    """`usecases.ports.Jobs` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._submitted: list[tuple[Job, asyncio.Future[Job]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, job: Job) -> Job:
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._submitted.append((job, answer))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_submitted(), name="submissions")
        return await asyncio.shield(answer)

    async def _write_submitted(self) -> None:
        """Store what was submitted while the last transaction was written: one sync of the disk serves all of it."""
        while self._submitted:
            batch, self._submitted = self._submitted[:MAX_BATCH], self._submitted[MAX_BATCH:]
            try:
                stored = await self._store([job for job, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.cancelled():
                        answer.set_exception(error)
            else:
                for job, answer in batch:
                    if not answer.cancelled():
                        answer.set_result(stored[job.id])

    async def _store(self, jobs: Sequence[Job]) -> Mapping[str, Job]:
        fresh = {job.id: job for job in jobs}
        count = sa.update(COUNTERS).where(COUNTERS.c.id == "jobs").values(value=COUNTERS.c.value + len(fresh))
        async with self._database.session() as session:
            # The row stays locked until the end: numbers become visible in their order, and the loop reads on from the
            # last one that it saw. What is known already leaves a gap.
            last = (await session.execute(count.returning(COUNTERS.c.value))).scalar_one()
            rows = (await session.execute(sa.select(JOBS).where(JOBS.c.id.in_(fresh)))).mappings().all()
            known = {row["id"]: _job(dict(row)) for row in rows}
            added = [job for job in fresh.values() if job.id not in known]
            for sequence, job in enumerate(added, last - len(added) + 1):
                job.sequence = sequence
            if added:
                await session.execute(sa.insert(JOBS), [{**_row(job), "sequence": job.sequence} for job in added])
        return fresh | known

    async def find(self, job_ids: Collection[str]) -> Sequence[Job]:
        return await self._select(JOBS.c.id.in_(list(job_ids)))

    async def active_of(self, job_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        async with self._database.session(read_only=True) as session:
            for start in range(0, len(job_ids), IDS_PER_STATEMENT):
                ids = job_ids[start : start + IDS_PER_STATEMENT]
                query = sa.select(JOBS.c.id).where(JOBS.c.id.in_(ids), JOBS.c.state.in_(ACTIVE))
                found.update((await session.execute(query)).scalars())
        return found

    async def active(self) -> Sequence[Job]:
        return await self._select(JOBS.c.state.in_(ACTIVE))

    async def news(self, after_sequence: int) -> Sequence[Job]:
        # Two queries: each has an index of its own.
        late = sa.and_(JOBS.c.sequence > after_sequence, JOBS.c.state.in_(ACTIVE))
        stopping = sa.and_(JOBS.c.stop_requested, JOBS.c.ended_at.is_(None))
        async with self._database.session(read_only=True) as session:
            rows = [
                *(await session.execute(sa.select(JOBS).where(stopping))).mappings().all(),
                *(await session.execute(sa.select(JOBS).where(late))).mappings().all(),
            ]
        found = {row["id"]: row for row in rows}
        return [_job(dict(row)) for row in sorted(found.values(), key=lambda row: row["sequence"])]

    async def progress(self, job_ids: Collection[str]) -> Mapping[str, Progress]:
        query = sa.select(JOBS.c.id, JOBS.c.progress).where(JOBS.c.id.in_(list(job_ids)))
        async with self._database.session(read_only=True) as session:
            return {row.id: Progress(**row.progress) for row in await session.execute(query)}

    async def save_reasons(self, jobs: Collection[Job]) -> None:
        waits = sa.and_(JOBS.c.id == sa.bindparam("job_id"), JOBS.c.state == State.SUBMITTED.value)
        change = sa.update(JOBS).where(waits).values(waits_because=sa.bindparam("why"))
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(change, [{"job_id": job.id, "why": storable(job.waits_because)} for job in jobs])

    async def search(self, query: Query) -> Sequence[int]:
        async with self._database.session(read_only=True) as session:
            return list((await session.execute(application_search.numbers(query))).scalars())

    async def numbered(self, numbers: Sequence[int]) -> Sequence[Job]:
        found = {job.sequence: job for job in await self._select(JOBS.c.sequence.in_(numbers))}
        return [found[number] for number in numbers if number in found]

    async def count(self, query: Query) -> int:
        async with self._database.session(read_only=True) as session:
            return int((await session.execute(application_search.count(query))).scalar_one())

    async def begin(self, job: Job) -> None:
        await self._save(job, job.attempt - 1, result_json="", warning="", not_finite_series=[])

    async def save(self, job: Job) -> None:
        await self._save(job, job.attempt)

    async def _save(self, job: Job, attempt: int, **more: Any) -> None:
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
        if reported.not_finite_series is not None:
            values["not_finite_series"] = [
                storable(name[:MAX_SERIES_LENGTH]) for name in reported.not_finite_series[:MAX_SERIES]
            ]
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
        "priority": job.spec.priority,
        "study": job.spec.study,
        "state": job.state.value,
        "reason": storable(job.reason),
        "waits_because": storable(job.waits_because),
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
        "suspending": job.suspending,
        "is_backfill": job.is_backfill,
        "waits_for": list(job.waits_for),
        "not_finite_series": list(job.not_finite_series),
    }


def _job(row: dict[str, Any]) -> Job:
    for shadow in ("owner", "name", "model", "dataset", "framework", "slots", "fewest_slots", "priority", "study"):
        del row[shadow]
    row["spec"] = Spec(**row["spec"])
    row["state"] = State(row["state"])
    row["progress"] = Progress(**row["progress"])
    row["ranks"] = [Rank(**rank) for rank in row["ranks"]]
    return Job(**row)
