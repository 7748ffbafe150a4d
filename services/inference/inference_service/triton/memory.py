"""No process of a model takes more memory than it may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from servicekit.reconcile import Next
from workerkit.confinement.descendants import below, end_tree
from workerkit.confinement.memory import held_bytes
from workerkit.confinement.sizes import describe_bytes

log = logging.getLogger(__name__)


class ModelMemory:
    """A reconcile step that ends each process of a version that holds more than `limit_bytes` with what it started.

    What it has in hand is answered with an error; whoever misses the process has it loaded again.
    """

    def __init__(self, processes: Callable[[], Mapping[tuple[str, int], Sequence[int]]], limit_bytes: int) -> None:
        self._processes, self._limit_bytes = processes, limit_bytes
        self._reasons: dict[str, str] = {}

    async def step(self) -> Next:
        """Look once."""
        await asyncio.to_thread(self._end_excess)
        return Next.LATER

    def why_ended(self, name: str) -> str:
        """Why a process of the model was ended since this was asked last; nothing when none was."""
        return self._reasons.pop(name, "")

    def _end_excess(self) -> None:
        for (name, version), owners in self._processes().items():
            for owner in owners:
                held = held_bytes([owner, *below(owner)], self._limit_bytes)
                if held <= self._limit_bytes:
                    continue
                self._reasons[name] = (
                    f"its process held {describe_bytes(held)} of memory; "
                    f"allowed are {describe_bytes(self._limit_bytes)} (DLMESH_MODEL_MEMORY_BYTES)"
                )
                log.error("%s, version %d, is ended: %s", name, version, self._reasons[name])
                end_tree(owner)
