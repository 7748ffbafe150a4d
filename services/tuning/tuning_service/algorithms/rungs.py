"""What Hyperband and ASHA share: which resources trials are given, and how configurations are ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tuning_service.algorithms.base import Evaluation, Problem, TrialState
from tuning_service.algorithms.history import Untried
from tuning_service.domain.space import Place


@dataclass(frozen=True)
class Levels:
    """The resources that trials can be given, in rising order; the last one is all of it.

    R, R/eta, R/eta^2 ... down to the least, rounded to whole numbers, no two the same. In fractions: log(243) / log(3)
    is less than 5 in floating point.
    """

    resources: tuple[int, ...]
    eta: Fraction

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Levels:
        """Of ResourceValue, MinResource and eta; ValueError when the least is more than all."""
        most, least = int(settings["ResourceValue"]), int(settings["MinResource"])
        eta = Fraction(str(settings["eta"]))
        if least > most:
            raise ValueError(f"MinResource: {least} is not valid; allowed: up to ResourceValue, {most}")
        exact = [Fraction(most)]
        while exact[-1] / eta >= least:
            exact.append(exact[-1] / eta)
        resources: list[int] = []
        for resource in reversed(exact):
            # Small ones can round to the same number, and a trial repeated on it would tell nothing.
            resources.append(max(round(resource), resources[-1] + 1 if resources else least))
        return cls(tuple(resources), eta)

    @property
    def deepest(self) -> int:
        """How often a trial on the least resource can be promoted."""
        return len(self.resources) - 1

    def kept(self, trials: int) -> int:
        """How many of so many go on."""
        return math.floor(trials / self.eta)


def best_of(trials: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """Up to `count` trials with the least losses, ties by number; what failed is infinitely bad, and none of them."""
    with_losses = [trial for trial in trials if math.isfinite(loss_of(trial))]
    return sorted(with_losses, key=lambda trial: (loss_of(trial), trial.number))[:count]


def loss_of(trial: Evaluation) -> float:
    """Infinite unless the trial finished with a number."""
    if trial.state is not TrialState.FINISHED or not trial.losses or math.isnan(trial.losses[0]):
        return math.inf
    return trial.losses[0]


class Configurations:
    """New configurations, by random search: none twice where they can be counted."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._clear()

    def _clear(self) -> None:
        self._untried, self._known = Untried(self._problem.space), 0
        self._drawn: list[Place] = []

    def read(self, trials: Sequence[Evaluation]) -> None:
        """Know these trials, and nothing that was drawn and did not become one of them."""
        if len(trials) < self._known:
            self._clear()
        for place in self._drawn:
            self._untried.remove(place)
        self._drawn = []
        for trial in trials[self._known :]:
            self._untried.add(trial.place)
        self._known = len(trials)

    @property
    def left(self) -> int | None:
        """How many there are; None when they cannot be counted."""
        return self._untried.left

    def draw(self, number: int) -> Place | None:
        """The configuration of the new trial `number`; None when there is none left."""
        place = self._untried.draw(self._problem.random(number, "configuration"))
        if place is not None:
            self._untried.add(place)
            self._drawn.append(place)
        return place
