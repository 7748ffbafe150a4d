"""No model takes more memory than it may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from servicekit.reconcile import Next
from workerkit.confinement.descendants import below
from workerkit.confinement.memory import held_bytes
from workerkit.confinement.sizes import describe_bytes

log = logging.getLogger(__name__)


class ModelMemory:
    """A reconcile step that ends the process of a version that holds more than `limit_bytes`, with what it started.

    What it has in hand is answered with an error; whoever misses the process has it loaded again.
    """

    def __init__(self, processes: Callable[[], Mapping[tuple[str, int], Sequence[int]]], limit_bytes: int) -> None:
        self._processes, self._limit_bytes = processes, limit_bytes

    async def step(self) -> Next:
        """Look once."""
        await asyncio.to_thread(self._end_excess)
        return Next.LATER

    def _end_excess(self) -> None:
        for (name, version), owners in self._processes().items():
            pids = [*owners, *(pid for owner in owners for pid in below(owner))]
            held = held_bytes(pids, self._limit_bytes)
            if held <= self._limit_bytes:
                continue
            log.error(
                "%s, version %d, held %s of memory and is ended; allowed are %s (DLMESH_MODEL_MEMORY_BYTES)",
                name,
                version,
                describe_bytes(held),
                describe_bytes(self._limit_bytes),
            )
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
