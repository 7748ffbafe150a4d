"""A study's trials without a database, and a look at processes: for tests of those that think."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuning_service.domain.evaluation import Answer, Evaluation, Problem, TrialState
from tuning_service.domain.space import Continuous, DataType, Levels, Space
from tuning_service.suggestions.built_in import BuiltInSuggestions

SPACE = Space((Continuous("rate", -5.0, 0.0, 10.0), Levels("width", DataType.INT, (8, 16, 32))))
HYPERBAND = {"ResourceName": "epochs", "ResourceValue": 27, "MinResource": 1, "eta": 3.0, "RandomSeed": None}
PROBLEM = Problem(SPACE, HYPERBAND, seed=5, max_trials=69)
ODD = (sys.executable, "-P", str(Path(__file__).with_name("odd_algorithms.py")))
PATIENCE_SECONDS = 240.0


class Table:
    """`usecases.ports.History` of a study without a database; counts how many rows it was asked for."""

    def __init__(self) -> None:
        self.trials: list[Evaluation] = []
        self._changes: list[int] = []
        self._change = 0
        self.read: list[int] = []
        # Every change of a test is smaller.
        self.page = 10_000

    async def since(self, change: int) -> tuple[Sequence[Evaluation], int, bool]:
        rows = zip(self._changes, range(len(self.trials)), strict=True)
        found = sorted((changed, index) for changed, index in rows if changed > change)[: self.page]
        # A full page may end within a change, which then comes again.
        until = self._change if len(found) < self.page else found[-1][0] - 1
        found = [(changed, index) for changed, index in found if changed <= until]
        self.read.append(len(found))
        return [self.trials[index] for _, index in found], until, until >= self._change

    def add(self, answer: Answer) -> None:
        self._change += 1
        for one in answer.suggestions:
            number = len(self.trials) + 1
            self.trials.append(Evaluation(number, one.place, TrialState.PENDING, None, one.notes, one.values))
            self._changes.append(self._change)

    def end(self, number: int, loss: float | None) -> None:
        self._change += 1
        state = TrialState.FAILED if loss is None else TrialState.FINISHED
        losses = None if loss is None else (loss,)
        self.trials[number - 1] = replace(self.trials[number - 1], state=state, losses=losses)
        self._changes[number - 1] = self._change


def is_running(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] != "Z"


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def thinking(**settings: Any) -> AsyncIterator[BuiltInSuggestions]:
    suggestions = BuiltInSuggestions(**settings)
    try:
        yield suggestions
    finally:
        pids = suggestions.pids
        await suggestions.close()
        assert not any(map(is_running, pids))
