"""What parameters explain of losses: found by the program that thinks out searches, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuning_service.domain.evaluation import Problem
from tuning_service.domain.problem_form import evaluation_form, problem_form
from tuning_service.suggestions.built_in import MEMORY_BYTES, THINK
from tuning_service.suggestions.lone_process import LoneProcesses
from tuning_service.usecases.ports import History, SuggestionError

IMPORTANCE_SECONDS = 240.0


class ImportanceProcesses:
    """Finds the importance of parameters."""

    def __init__(self, *, limit_seconds: float = IMPORTANCE_SECONDS, command: Sequence[str] = THINK) -> None:
        self._processes = LoneProcesses(command, limit_seconds)

    async def importance(self, problem: Problem, history: History) -> Mapping[str, float]:
        """As `usecases.ports.Suggestions` says."""
        # No suggestion is asked for: any algorithm will do.
        about: dict[str, Any] = {"study": "", "algorithm": "Random", "problem": problem_form(problem), "count": 0}
        since, is_newest, answer = 0, False, dict[str, Any]()
        async with self._processes.asked_for("what the parameters explain", str(MEMORY_BYTES)) as ask:
            while not is_newest:
                trials, until, is_newest = await history.since(since)
                told = {"since": since, "until": until, "trials": [evaluation_form(trial) for trial in trials]}
                answer = await ask({**about, **told, "question": "importance" if is_newest else ""})
                if "error" in answer:
                    raise SuggestionError(str(answer["error"]))
                since = until
        found: Mapping[str, float] = answer["importance"]
        return found
