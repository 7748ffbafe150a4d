"""Tree-structured Parzen estimator: where are the good trials dense, and the others not?

After Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011), with one kernel a trial over all dimensions
together (Falkner et al., "BOHB", 2018) and good trials weighed by how good they are (Song et al., "A General Recipe for
Likelihood-free Bayesian Optimization", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tuning_service.algorithms.density import Density
from tuning_service.algorithms.history import Floats, History
from tuning_service.algorithms.model_search import ModelSearch
from tuning_service.algorithms.pareto import best_first
from tuning_service.domain.evaluation import Problem, Suggestion

# Of a long study the model looks at so many of the best, and of the newest.
BEST, NEWEST = 500, 500
# The newest count in full, the older the less.
FRESH = 25
LEAST_WEIGHT = 0.2


class Tpe(ModelSearch):
    """Settings: WarmUp trials of a design first; then of EICandidate places that are drawn where good trials are dense,
    the one is tried that is most among good ones and least among others. Good are ceil(GoodRatio * n) of n trials, at
    most GoodMax. What runs counts among the others."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, warm_up=int(problem.settings["WarmUp"]))
        self._candidates = int(problem.settings["EICandidate"])
        self._good_ratio = float(problem.settings["GoodRatio"])
        self._good_max = int(problem.settings["GoodMax"])

    def propose(self, history: History, numbers: np.random.Generator, notes: Mapping[str, Any]) -> Suggestion | None:
        codec, ended = history.codec, history.ended
        losses = history.losses(ended)
        order = best_first(losses, BEST, NEWEST)
        good = min(math.ceil(self._good_ratio * len(ended)), self._good_max, len(order))
        others = np.sort(order[good:])
        good_rows = history.rows(ended[order[:good]])
        other_rows = np.concatenate([history.rows(ended[others]), history.pending])
        among_good = Density(codec, good_rows, weights(losses[order[:good]]))
        among_others = Density(codec, other_rows, _by_age(len(other_rows)))
        rows = history.few_left(self._candidates)
        if rows is None:
            rows = codec.snapped(among_good.draw(self._candidates, numbers))
        scores = among_good.log(rows) - among_others.log(rows)
        for index in np.argsort(-scores, kind="stable"):
            if history.is_new(rows[index]):
                return Suggestion(codec.place(rows[index]))
        return None


def weights(losses: Floats) -> Floats:
    """Of good trials: by how much they are better than the worst of them, but none far less than the others."""
    alike = np.ones(len(losses))
    if losses.shape[1] > 1:
        return alike
    # Halves: the difference of two of the largest numbers is none.
    better = np.max(losses[:, 0]) / 2 - losses[:, 0] / 2
    if not np.any(better > 0):
        return alike
    better /= np.max(better)
    better += 0.5 * np.min(better[better > 0])
    return np.maximum(better / np.mean(better), LEAST_WEIGHT)


def _by_age(count: int) -> Floats:
    older = max(0, count - FRESH)
    return np.concatenate([np.linspace(1.0 / max(1, count), 1.0, older), np.ones(count - older)])
