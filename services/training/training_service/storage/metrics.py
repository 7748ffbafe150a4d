"""Stored curves."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from servicekit.database import Database
from sqlalchemy.dialects import postgresql, sqlite

from training_service.domain.metrics import MetricPoint
from training_service.storage.tables import MetricRow

# Both databases limit the parameters of one statement; five go with each point.
POINTS_PER_STATEMENT = 1000


class SqlMetrics:
    """Points by job, series, step and attempt."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.url.get_backend_name() == "postgresql" else sqlite.insert

    async def upsert(self, points: Sequence[MetricPoint]) -> None:
        # One statement must not name a row twice; the last value of a key counts.
        keyed = {(point.job_id, point.series, point.step, point.attempt): point.value for point in points}
        rows = [
            {"job_id": job_id, "series": series, "step": step, "attempt": attempt, "value": value}
            for (job_id, series, step, attempt), value in keyed.items()
        ]
        async with self._database.session() as session:
            for start in range(0, len(rows), POINTS_PER_STATEMENT):
                statement = self._insert(MetricRow).values(rows[start : start + POINTS_PER_STATEMENT])
                await session.execute(
                    statement.on_conflict_do_update(
                        index_elements=["job_id", "series", "step", "attempt"],
                        set_={"value": statement.excluded.value},
                    )
                )

    async def read(self, job_id: str, series: Sequence[str]) -> list[MetricPoint]:
        query = sa.select(MetricRow).where(MetricRow.job_id == job_id)
        if series:
            query = query.where(MetricRow.series.in_(series))
        query = query.order_by(MetricRow.series, MetricRow.step, MetricRow.attempt)
        async with self._database.session() as session:
            # Of a step that was repeated after a restart the newest attempt comes last and stays.
            newest = {(row.series, row.step): row for row in await session.scalars(query)}
        return [MetricPoint(row.job_id, row.attempt, row.series, row.step, row.value) for row in newest.values()]
