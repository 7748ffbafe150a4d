"""Orders to remove what is left of deleted runs; `SqlRuns.remove` writes them."""

from __future__ import annotations

import sqlalchemy as sa
from servicekit.database import Database

from training_service.domain.removals import Removal
from training_service.storage.tables import MetricAttemptRow, MetricRow, RemovalRow


class SqlRemovals:
    """The orders in their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pending(self) -> list[Removal]:
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(sa.select(RemovalRow).order_by(RemovalRow.uid))
            return [Removal(row.uid, row.kind, row.name, row.job_id) for row in rows]

    async def forget(self, removal: Removal) -> None:
        async with self._database.session() as session:
            for table in (MetricRow, MetricAttemptRow):
                await session.execute(sa.delete(table).where(table.job_id == removal.job_id))
            await session.execute(sa.delete(RemovalRow).where(RemovalRow.uid == removal.uid))
