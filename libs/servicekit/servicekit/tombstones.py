"""Ids that were deleted, perhaps before they came, noted for a while so that what comes late under one is not made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.database import Database


class Tombstones:
    """The table of `id_column`, its primary key, and `deleted_at`. Every call is part of the transaction of a session.

    Who makes something claims its id first, who deletes it notes the id first: of two that meet the later one waits for
    the earlier's transaction, and sees what that did.
    """

    def __init__(self, database: Database, id_column: Any, deleted_at: Any) -> None:
        self._id, self._deleted_at = id_column, deleted_at
        is_postgresql = database.url.get_backend_name() == "postgresql"
        self._insert = postgresql.insert if is_postgresql else sqlite.insert

    async def note(self, session: AsyncSession, ids: Sequence[str], now: datetime) -> Sequence[str]:
        """Note ids, sorted where two may note several at once; those that were not noted yet."""
        statement = self._insert(self._id.table).on_conflict_do_nothing().returning(self._id)
        rows = [{self._id.key: one, self._deleted_at.key: now} for one in ids]
        return list((await session.scalars(statement, rows)).all())

    async def claim(self, session: AsyncSession, one: str, now: datetime) -> bool:
        """False when the id was deleted; it cannot be before the transaction ends."""
        if not await self.note(session, [one], now):
            return False
        await session.execute(sa.delete(self._id.table).where(self._id == one))
        return True

    def noted(self, one: str) -> sa.Select[Any]:
        """A row when the id was deleted."""
        return sa.select(self._id).where(self._id == one)

    async def forget(self, session: AsyncSession, before: datetime, *kept: sa.Select[Any]) -> None:
        """Forget ids that were deleted before then, but for those that a query of `kept` finds."""
        gone = sa.and_(self._deleted_at < before, *(self._id.not_in(query) for query in kept))
        await session.execute(sa.delete(self._id.table).where(gone))
