"""Is the whole platform serving?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from gateway_service.usecases.ports import HealthProbe

SERVING = "SERVING"


class PlatformHealth:
    """Probes at most once in `fresh_seconds`, however many ask."""

    def __init__(
        self, probe: HealthProbe, fresh_seconds: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: Mapping[str, str] = {}
        self._known_at = float("-inf")

    async def check(self) -> tuple[bool, Mapping[str, str]]:
        """(all serve, service -> state)."""
        async with self._lock:
            if self._clock() - self._known_at >= self._fresh_seconds:
                self._known = await self._probe.probe()
                self._known_at = self._clock()
            return all(state == SERVING for state in self._known.values()), self._known
