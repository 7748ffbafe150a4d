"""The loop that makes written intent true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0
# What is waited for long is looked at less often: every look takes time from the ranks on the same machine.
PAUSE_SHARE = 1 / 20


class Next(Enum):
    """When a step wants to be repeated, unless a `wake` comes before."""

    AT_ONCE = "it changed something, and there may be more"
    SOON = "it waits for what others do"
    LATER = "there is nothing to do until somebody writes intent"


class ReconcileLoop:
    """Runs `step` again and again, as soon as it asks for.

    While it waits, pauses grow from `soon_seconds` to a twentieth of the time waited and at most `later_seconds`; with
    nothing to wait for they are `later_seconds`. `step` must be safe to kill anywhere and to repeat; an exception is
    logged and retried with backoff.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[Next]],
        *,
        soon_seconds: float = 0.25,
        later_seconds: float = 1.0,
    ) -> None:
        self.name = name
        self._step = step
        self._soon_seconds, self._later_seconds = soon_seconds, later_seconds
        self._waits_since = time.monotonic()
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
            outlook = Next.SOON
            try:
                outlook = await self._step()
                failures = 0
            except asyncio.CancelledError:
                raise
            except Exception:
                failures += 1
                log.exception("loop %s: step failed (%d in a row)", self.name, failures)
            if outlook is not Next.SOON or self._wake.is_set():
                self._waits_since = time.monotonic()
            if outlook is Next.AT_ONCE:
                await asyncio.sleep(0)
                continue
            pause = self._pause(outlook) if not failures else min(0.2 * 2**failures, MAX_BACKOFF_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                    self._waits_since = time.monotonic()

    def _pause(self, outlook: Next) -> float:
        if outlook is Next.LATER:
            return self._later_seconds
        waited = time.monotonic() - self._waits_since
        return max(self._soon_seconds, min(waited * PAUSE_SHARE, self._later_seconds))
