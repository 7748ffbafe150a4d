"""Random search: every trial is drawn evenly from what was not tried."""

from __future__ import annotations

from collections.abc import Sequence

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Problem, Suggestion
from tuning_service.algorithms.history import Untried


class RandomSearch(Algorithm):
    """The trial with number n depends on the seed, on n, and where values can be counted on the trials before it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._untried = Untried(problem.space)
        self._known = 0

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        if len(trials) < self._known:
            self._untried, self._known = Untried(self.problem.space), 0
        for trial in trials[self._known :]:
            self._untried.add(trial.place)
        self._known = len(trials)
        places = []
        for asked in range(len(trials), len(trials) + count):
            place = self._untried.draw(self.problem.random(asked))
            if place is None:
                break
            self._untried.add(place)
            places.append(place)
        for place in places:
            self._untried.remove(place)
        return Answer([Suggestion(place) for place in places], is_exhausted=len(places) < count)
