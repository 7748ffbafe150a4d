"""Work that several ask for at once and that is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Callable with a key and what does its work: a call for a key that is being worked for waits for that work.

    The work goes on when its callers go away, who will ask for it again. All who wait get its result or its error; a
    call that comes after its end begins it anew.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[str, asyncio.Task[Result]] = {}

    async def __call__(self, key: str, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        running = self._running.get(key)
        if running is None:
            running = asyncio.create_task(work(), name=f"{self._name} {key}")
            self._running[key] = running
            running.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(running)

    def _ended(self, key: str, running: asyncio.Task[Result]) -> None:
        del self._running[key]
        if not running.cancelled():
            # Whoever asked may be gone.
            running.exception()
