"""The loop that makes written intent true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0


class ReconcileLoop:
    """Runs `step` again and again: at once while it reports work, else after `idle_seconds` or a `wake`.

    `step` must be safe to kill anywhere and to repeat; an exception is logged and retried with backoff.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[bool]], idle_seconds: float = 0.25) -> None:
        self.name = name
        self._step = step
        self._idle_seconds = idle_seconds
        self._wake = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """Run the step now; call it after intent was committed."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the step under way: cancelling one would leave its transaction open in a lost connection."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Loop until stopped (or cancelled)."""
        failures = 0
        while not self._stopping:
            self._wake.clear()
            try:
                worked = await self._step()
                failures = 0
            except asyncio.CancelledError:
                raise
            except Exception:
                failures += 1
                worked = False
                log.exception("loop %s: step failed (%d in a row)", self.name, failures)
            if worked:
                await asyncio.sleep(0)
                continue
            pause = self._idle_seconds if not failures else min(0.2 * 2**failures, MAX_BACKOFF_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
