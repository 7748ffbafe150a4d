"""Claiming a row for a while, so that two loops never act on it at once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Table, or_, update
from sqlalchemy.ext.asyncio import AsyncSession


async def claim(session: AsyncSession, table: Table, row_id: Any, holder: str, seconds: float, now: datetime) -> bool:
    """Take or renew the lease of one row; False when another holder has it.

    The table has `id`, `lease_holder` (nullable text) and `lease_expires_at` (nullable UTC time). One conditional
    UPDATE decides, so it is safe between processes and databases.
    """
    statement = (
        update(table)
        .where(
            table.c.id == row_id,
            or_(table.c.lease_holder.is_(None), table.c.lease_holder == holder, table.c.lease_expires_at < now),
        )
        .values(lease_holder=holder, lease_expires_at=now + timedelta(seconds=seconds))
    )
    result = await session.execute(statement)
    return isinstance(result, CursorResult) and result.rowcount == 1
