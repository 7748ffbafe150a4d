"""Stored curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import sqlalchemy as sa
from servicekit.database import Database
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from training_service.domain.metrics import MetricPoint
from training_service.storage.tables import MetricAttemptRow, MetricRow

# Both databases limit the parameters of one statement.
STEPS_PER_STATEMENT = 1000
# The points that count, and the condition of their table, or an alias of it, that a point does.
Curve = tuple[AsyncSession, Callable[[Any], list[sa.ColumnElement[bool]]]]


class SqlMetrics:
    """Points by job, series, step and attempt.

    Of an attempt those count that lie before the first step of every later attempt, whatever its series: the steps
    behind it were discarded.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_postgresql = database.url.get_backend_name() == "postgresql"
        self._insert = postgresql.insert if self._is_postgresql else sqlite.insert

    async def add(self, points: Sequence[MetricPoint]) -> int:
        if not points:
            return 0
        # Of the table, not of the class, and with the rows beside it: a thirtieth of the time goes into the statement.
        table = cast("sa.Table", MetricRow.__table__)
        statement = self._insert(table).on_conflict_do_nothing().returning(table.c.step)
        async with self._database.session() as session:
            new = len((await session.execute(statement, [vars(point) for point in points])).all())
            await self._extend_attempts(session, points)
        return new

    async def _extend_attempts(self, session: AsyncSession, points: Sequence[MetricPoint]) -> None:
        steps: dict[tuple[str, int], list[int]] = defaultdict(list)
        for point in points:
            steps[point.job_id, point.attempt].append(point.step)
        table = cast("sa.Table", MetricAttemptRow.__table__)
        insert = self._insert(table)
        first, last, given = table.c.first_step, table.c.last_step, insert.excluded
        statement = insert.on_conflict_do_update(
            index_elements=[table.c.job_id, table.c.attempt],
            set_={
                "first_step": sa.case((given.first_step < first, given.first_step), else_=first),
                "last_step": sa.case((given.last_step > last, given.last_step), else_=last),
            },
        )
        rows = [
            {"job_id": job_id, "attempt": attempt, "first_step": min(several), "last_step": max(several)}
            for (job_id, attempt), several in sorted(steps.items())
        ]
        await session.execute(statement, rows)

    async def series(self, job_id: str) -> list[str]:
        # From name to name along the primary key: looking for the distinct ones would read all points.
        mine = sa.select(sa.func.min(MetricRow.series)).where(MetricRow.job_id == job_id)
        names = mine.cte("names", recursive=True)
        names = names.union_all(
            sa.select(mine.where(MetricRow.series > names.c[0]).scalar_subquery()).where(names.c[0].is_not(None))
        )
        async with self._database.session(read_only=True) as session:
            return [name for name in await session.scalars(sa.select(names.c[0])) if name is not None]

    async def page(self, job_id: str, series: str, since_step: int, count: int) -> list[MetricPoint]:
        async with self._curve(job_id) as (session, counts):
            query = _points(job_id, series).where(MetricRow.step >= since_step, *counts(MetricRow))
            rows = (await session.execute(query.order_by(MetricRow.step).limit(count))).all()
        return [_point(job_id, series, row) for row in rows]

    async def last(self, job_id: str, series: str) -> MetricPoint | None:
        async with self._curve(job_id) as (session, counts):
            query = _points(job_id, series).where(*counts(MetricRow)).order_by(MetricRow.step.desc()).limit(1)
            row = (await session.execute(query)).first()
        return _point(job_id, series, row) if row else None

    async def extremes(self, job_id: str, series: str, ranges: range) -> list[MetricPoint]:
        point = aliased(MetricRow)
        begins = sa.select(sa.literal(ranges.start, sa.BigInteger).label("step")).cte("begins", recursive=True)
        begins = begins.union_all(
            sa.select(begins.c.step + ranges.step).where(begins.c.step + ranges.step < ranges.stop)
        )
        rows: list[Any] = []
        async with self._curve(job_id) as (session, counts):
            step = sa.select(point.step).where(
                point.job_id == job_id,
                point.series == series,
                point.step >= begins.c.step,
                point.step < begins.c.step + ranges.step,
                point.step < ranges.stop,
                *counts(point),
            )
            lowest = step.order_by(point.value, point.step).limit(1).scalar_subquery()
            highest = step.order_by(point.value.desc(), point.step).limit(1).scalar_subquery()
            found = await session.execute(sa.select(lowest, highest).select_from(begins))
            steps = sorted({step for pair in found for step in pair if step is not None})
            for start in range(0, len(steps), STEPS_PER_STATEMENT):
                some = MetricRow.step.in_(steps[start : start + STEPS_PER_STATEMENT])
                query = _points(job_id, series).where(some, *counts(MetricRow)).order_by(MetricRow.step)
                rows += (await session.execute(query)).all()
        return [_point(job_id, series, row) for row in rows]

    @asynccontextmanager
    async def _curve(self, job_id: str) -> AsyncIterator[Curve]:
        """A session that sees the state of one moment, and which points of the job count in it.

        Attempts that ended before the next one's first step need no condition: of most jobs there is none at all.
        """
        table = MetricAttemptRow
        query = sa.select(table.attempt, table.first_step, table.last_step).where(table.job_id == job_id)
        async with self._database.session(read_only=True) as session:
            if self._is_postgresql:
                await session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            discarded: list[tuple[int, int]] = []
            begin: int | None = None
            for attempt, first, last in await session.execute(query.order_by(table.attempt.desc())):
                if begin is not None and last >= begin:
                    discarded.append((attempt, begin))
                begin = first if begin is None else min(begin, first)

            def counts(point: Any) -> list[sa.ColumnElement[bool]]:
                return [sa.or_(point.attempt != attempt, point.step < begin) for attempt, begin in discarded]

            yield session, counts


def _points(job_id: str, series: str) -> sa.Select[int, int, float, float]:
    columns = (MetricRow.attempt, MetricRow.step, MetricRow.value, MetricRow.time)
    return sa.select(*columns).where(MetricRow.job_id == job_id, MetricRow.series == series)


def _point(job_id: str, series: str, row: Any) -> MetricPoint:
    return MetricPoint(job_id, row.attempt, series, row.step, row.value, row.time)
