"""Fronts of more than two objectives: found in a process that lives for one question, one at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from servicekit.errors import Code, ServiceError

from tuning_service.suggestions.process import LineProcess, ProcessEndedError, WrongAnswerError, clean_environment

log = logging.getLogger(__name__)

FRONT_SECONDS = 120.0
_COMMAND = (sys.executable, "-P", "-m", "tuning_service.worker.pareto_front")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class FrontProcesses:
    """`usecases.ports.Fronts`."""

    def __init__(self, *, limit_seconds: float = FRONT_SECONDS, command: Sequence[str] = _COMMAND) -> None:
        self._limit_seconds, self._command = limit_seconds, command
        self._turn = asyncio.Lock()

    async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
        async with self._turn:
            process = await LineProcess.start(
                [*self._command, str(os.getpid())],
                sink=_log,
                environment={**clean_environment(os.environ, more=("PYTHONPATH",)), **_ONE_THREAD},
            )
            try:
                # Named so that it is put into words beside the event loop when it is long.
                answer = await process.ask({"trials": losses, "most": most}, self._limit_seconds)
            except (TimeoutError, ProcessEndedError, WrongAnswerError) as error:
                reason = str(error) or f"no answer within {self._limit_seconds:g} s"
                text = f"the front of {len(losses)} trials cannot be found: {reason}"
                raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", text) from error
            finally:
                await process.end()
        found: Sequence[int] = answer["front"]
        return found


async def _log(chunk: bytes) -> None:
    log.warning("the process that finds fronts says: %s", chunk.decode(errors="replace")[:1000])
