"""What searches with a model of the loss share: a design to begin with, one suggestion after another, no repetition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Problem, Suggestion
from tuning_service.algorithms.history import Floats, History
from tuning_service.domain.space import Place

DESIGNS = 30
# The note in which a model writes what the next one begins with, and how many trials back it is looked for.
MODEL, RECENT = "model", 200
# Designs are compared pair by pair.
LARGEST_COMPARED = 200


class ModelSearch(Algorithm):
    """Asks for several trials are answered one by one, each as if those before it were pending."""

    def __init__(self, problem: Problem, warm_up: int) -> None:
        super().__init__(problem)
        self._warm_up = warm_up
        self._history = History(problem.space, problem.objectives, problem.known)
        self._design: Floats | None = None

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        history = self._history
        history.read(trials)
        notes = _latest_notes(trials)
        suggestions: list[Suggestion] = []
        is_exhausted = False
        while len(suggestions) < count:
            suggestion = self._next(history, notes)
            if suggestion is None:
                is_exhausted = True
                break
            history.add(suggestion.place)
            notes = suggestion.notes or notes
            suggestions.append(suggestion)
            if self.is_late():
                break
        history.forget_from(len(trials))
        return Answer(suggestions, is_exhausted)

    @abstractmethod
    def propose(self, history: History, numbers: np.random.Generator, notes: Mapping[str, Any]) -> Suggestion | None:
        """What the model wants to try next, which was not tried before; None when all it thought of was.

        `notes` are the latest of a recent trial in which there is a MODEL.
        """

    def _next(self, history: History, notes: Mapping[str, Any]) -> Suggestion | None:
        asked = len(history)
        if history.untried.left == 0:
            return None
        if asked >= self._warm_up and 2 * history.with_losses >= self._warm_up:
            numbers = np.random.default_rng(self.problem.seed_of(asked))
            suggestion = self.propose(history, numbers, notes)
            if suggestion is not None:
                return suggestion
        elif asked < self._warm_up:
            place = self._designed(asked)
            if place in history.untried:
                return Suggestion(place)
        drawn = history.untried.draw(self.problem.random(asked, "draw"))
        return None if drawn is None else Suggestion(drawn)

    def _designed(self, index: int) -> Place:
        """A Latin hypercube: every part of every dimension has its trial; the best spread of several at random."""
        if self._design is None:
            numbers = np.random.default_rng(self.problem.seed_of(0, "design"))
            self._design = best_design(self._warm_up, self._history.codec.width, numbers)
        codec = self._history.codec
        return codec.place(codec.spread(self._design[index : index + 1])[0])


def best_design(points: int, width: int, numbers: np.random.Generator) -> Floats:
    """Points of a Latin hypercube, uniform from 0 to 1, whose nearest two are as far apart as in none of the others."""
    best, best_distance = latin_hypercube(points, width, numbers), -1.0
    if points > LARGEST_COMPARED or points < 2 or width == 0:
        return best
    for _ in range(DESIGNS):
        design = latin_hypercube(points, width, numbers)
        distances = np.sum((design[:, None, :] - design[None, :, :]) ** 2, axis=2)
        nearest = float(np.min(distances[np.triu_indices(points, 1)]))
        if nearest > best_distance:
            best, best_distance = design, nearest
    return best


def latin_hypercube(points: int, width: int, numbers: np.random.Generator) -> Floats:
    cells = np.argsort(numbers.random((points, width)), axis=0)
    return (cells + numbers.random((points, width))) / points


def _latest_notes(trials: Sequence[Evaluation]) -> Mapping[str, Any]:
    return next((trial.notes for trial in reversed(trials[-RECENT:]) if MODEL in trial.notes), {})
