"""Fronts of more than two objectives: found in a process of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tuning_service.suggestions.lone_process import LoneProcesses

FRONT_SECONDS = 120.0
_COMMAND = (sys.executable, "-P", "-m", "tuning_service.worker.pareto_front")


class FrontProcesses:
    """`usecases.ports.Fronts`."""

    def __init__(self, *, limit_seconds: float = FRONT_SECONDS, command: Sequence[str] = _COMMAND) -> None:
        self._processes = LoneProcesses(command, limit_seconds)

    async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
        async with self._processes.asked_for(f"the front of {len(losses)} trials") as ask:
            # Named so that it is put into words beside the event loop when it is long.
            answer = await ask({"trials": losses, "most": most})
        found: Sequence[int] = answer["front"]
        return found
