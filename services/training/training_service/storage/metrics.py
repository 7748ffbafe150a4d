"""Stored curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import sqlalchemy as sa
from servicekit.database import Database
from sqlalchemy.dialects import postgresql, sqlite

from training_service.domain.metrics import MetricPoint
from training_service.storage.tables import MetricRow

# Both databases limit the parameters of one statement; six go with each point.
POINTS_PER_STATEMENT = 1000


class SqlMetrics:
    """Points by job, series, step and attempt."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.url.get_backend_name() == "postgresql" else sqlite.insert

    async def add(self, points: Sequence[MetricPoint]) -> int:
        added = 0
        async with self._database.session() as session:
            for start in range(0, len(points), POINTS_PER_STATEMENT):
                rows = [asdict(point) for point in points[start : start + POINTS_PER_STATEMENT]]
                result = await session.execute(self._insert(MetricRow).values(rows).on_conflict_do_nothing())
                added += cast("sa.CursorResult[Any]", result).rowcount
        return added

    async def read(self, job_id: str, series: Sequence[str]) -> list[MetricPoint]:
        query = sa.select(MetricRow).where(MetricRow.job_id == job_id)
        if series:
            query = query.where(MetricRow.series.in_(series))
        query = query.order_by(MetricRow.series, MetricRow.step, MetricRow.attempt)
        async with self._database.session() as session:
            # Of a step that was repeated after a restart the newest attempt comes last and stays.
            newest = {(row.series, row.step): row for row in await session.scalars(query)}
        return [
            MetricPoint(row.job_id, row.attempt, row.series, row.step, row.value, row.time) for row in newest.values()
        ]
