"""What parameters explain of losses: found in a process that lives for one question, one at a time."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from servicekit.errors import Code, ServiceError

from tuning_service.domain.evaluation import Problem
from tuning_service.domain.problem_form import evaluation_form, problem_form
from tuning_service.suggestions.built_in import MEMORY_BYTES, ONE_THREAD, THINK
from tuning_service.suggestions.process import LineProcess, ProcessEndedError, WrongAnswerError, clean_environment
from tuning_service.usecases.ports import History, SuggestionError

log = logging.getLogger(__name__)

IMPORTANCE_SECONDS = 240.0


class ImportanceProcesses:
    """Asks the program that thinks out searches, but not the processes that do: those have others waiting."""

    def __init__(self, *, limit_seconds: float = IMPORTANCE_SECONDS, command: Sequence[str] = THINK) -> None:
        self._limit_seconds, self._command = limit_seconds, command
        self._turn = asyncio.Lock()

    async def importance(self, problem: Problem, history: History) -> Mapping[str, float]:
        """As `usecases.ports.Suggestions` says."""
        async with self._turn:
            process = await LineProcess.start(
                [*self._command, str(os.getpid()), str(MEMORY_BYTES)],
                sink=_log,
                environment={**clean_environment(os.environ, more=("PYTHONPATH",)), **ONE_THREAD},
            )
            try:
                return await self._ask(process, problem, history)
            except (TimeoutError, ProcessEndedError, WrongAnswerError) as error:
                reason = str(error) or f"no answer within {self._limit_seconds:g} s"
                text = f"what the parameters explain cannot be found: {reason}"
                raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", text) from error
            finally:
                await process.end()

    async def _ask(self, process: LineProcess, problem: Problem, history: History) -> Mapping[str, float]:
        # No suggestion is asked for: any algorithm will do.
        ask: dict[str, Any] = {"study": "", "algorithm": "Random", "problem": problem_form(problem), "count": 0}
        since, is_newest, answer = 0, False, dict[str, Any]()
        while not is_newest:
            trials, until, is_newest = await history.since(since)
            message = {**ask, "since": since, "until": until, "trials": [evaluation_form(trial) for trial in trials]}
            answer = await process.ask(message | {"question": "importance" if is_newest else ""}, self._limit_seconds)
            if "error" in answer:
                raise SuggestionError(str(answer["error"]))
            since = until
        found: Mapping[str, float] = answer["importance"]
        return found


async def _log(chunk: bytes) -> None:
    log.warning("the process that finds what parameters explain says: %s", chunk.decode(errors="replace")[:1000])
