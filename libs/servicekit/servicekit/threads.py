"""Work in threads that a client which goes away does not leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")


async def in_thread(call: Callable[..., Made], *arguments: object) -> Made:
    """As `asyncio.to_thread`, but over when the thread is, also for a client that went away: what it wrote is removed
    then, and nothing may write there any more."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.gather(work, return_exceptions=True)
        raise
