"""Searches run to their end without a service: studies whose trials end in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tuning_service.algorithms.base import Evaluation, Problem, TrialState
from tuning_service.algorithms.registry import find, make_algorithm, read_settings
from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Place, Space

# Short, so that the models are at work soon.
SHORT: Mapping[str, Mapping[str, str]] = {
    "Random": {},
    "Tpe": {"WarmUp": "5"},
    "Bayesian": {"InitPoints": "5", "CubeSize": "100"},
    "Nevergrad": {"Optimizer": "TwoPointsDE"},
}
MIXED = Space(
    (
        Continuous("rate", -5.0, 0.0, 10.0),
        Continuous("momentum", 0.0, 1.0),
        Levels("width", DataType.INT, range(8, 108)),
        Choice("solver", DataType.STR, ("Adam", "SGD", "Lion")),
    )
)
GRID = Space((Levels("width", DataType.INT, range(4)), Choice("solver", DataType.STR, ("Adam", "SGD", "Lion"))))

Losses = Callable[[Place], Sequence[float] | None]


def problem_of(
    name: str, space: Space = MIXED, *, seed: int = 7, objectives: int = 1, given: Mapping[str, str] | None = None
) -> Problem:
    found = find(name)
    assert found is not None
    return Problem(space, read_settings(found[1], {**SHORT[name], **(given or {})}), seed, objectives, parallel=4)


def unit(place: Place, space: Space = MIXED) -> list[float]:
    return [
        coordinate if dimension.size is None else coordinate / max(1, dimension.size - 1)
        for coordinate, dimension in zip(place, space.dimensions, strict=True)
    ]


def bowl(place: Place) -> Sequence[float]:
    """Least at a rate of 0.3, a momentum of 0.6, half the width and the first solver."""
    rate, momentum, width, solver = unit(place)
    return [(rate - 0.3) ** 2 + (momentum - 0.6) ** 2 + (width - 0.5) ** 2 + 0.3 * solver]


@dataclass
class Study:
    """A study whose trials end in any order."""

    problem: Problem
    name: str
    losses: Losses = bowl
    seed: int = 1
    workers: int = 4
    check_restarts: bool = False

    def __post_init__(self) -> None:
        self.order = random.Random(self.seed)
        self.algorithm = make_algorithm(self.name, self.problem)
        self.trials: list[Evaluation] = []
        self.is_exhausted = False

    def run(self, trials: int) -> Study:
        while len(self.trials) < trials and not self.is_exhausted:
            pending = [index for index, trial in enumerate(self.trials) if trial.state is TrialState.PENDING]
            if len(pending) == self.workers:
                self.end(self.order.choice(pending))
                continue
            self.ask(min(self.workers - len(pending), trials - len(self.trials)))
        return self

    def ask(self, count: int) -> None:
        answer = self.algorithm.ask(list(self.trials), count)
        if self.check_restarts:
            assert make_algorithm(self.name, self.problem).ask(list(self.trials), count) == answer
        for suggestion in answer.suggestions:
            number = len(self.trials) + 1
            self.trials.append(Evaluation(number, suggestion.place, TrialState.PENDING, None, suggestion.notes))
        assert answer.is_exhausted or len(answer.suggestions) == count
        self.is_exhausted = answer.is_exhausted

    def end(self, index: int) -> None:
        trial = self.trials[index]
        losses = self.losses(trial.place)
        state = TrialState.FAILED if losses is None else TrialState.FINISHED
        self.trials[index] = replace(trial, state=state, losses=tuple(losses) if losses else None)

    @property
    def places(self) -> list[Place]:
        return [trial.place for trial in self.trials]

    @property
    def best(self) -> float:
        return min(trial.losses[0] for trial in self.trials if trial.losses)
