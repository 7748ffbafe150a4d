"""nevergrad's optimizers, over a unit cube: evolution strategies, swarms, designs, and its own choice among them.

They are objects that ask and are told, and what they answer depends on the order of both. That order is written in the
notes of trials, so that one made anew goes the same way again.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import nevergrad
import numpy as np
from nevergrad.common.errors import TellNotAskedNotSupportedError
from threadpoolctl import ThreadpoolController

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.algorithms.history import NEAR, Codec, Floats, Untried
from tuning_service.domain.space import Coordinate, Dimension, Place

# The note of the trials that had ended and were told since the ask before.
TOLD = "told"
# What a search without a limit is planned for; going on after it does no harm.
PLANNED_TRIALS = 100
# After so many trials another optimizer goes on from the best: asking and telling one again after a restart takes up to
# tens of milliseconds a trial, and its memory grows.
COURSE_TRIALS, COURSE_BEST = 250, 100
# A choice has a weight for each value; one among more values is a number like those that are in order.
MOST_WEIGHTS = 32
# How often the optimizer is asked for another place when it repeats one, before one is drawn.
ATTEMPTS = 10
# Losses beyond it count by their decades: nevergrad cuts off what is larger still.
LARGE = 1e10


class Nevergrad(Algorithm):
    """Settings: the Optimizer, by nevergrad's name for it.

    What an optimizer repeats is answered with the loss that is known, or shares the one that is to come. Failed trials
    count as the worst so far; what was given up with a loss as that, but not better than the median.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        # Matrices are small: threads would wait for each other, and sums would come out otherwise on other machines.
        self._threads = ThreadpoolController()
        self._search: _Search | None = None

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        with self._threads.limit(limits=1, user_api="blas"), _own_numbers(), warnings.catch_warnings():
            # About settings that others would prefer.
            warnings.simplefilter("ignore")
            if self._search is None or not self._search.leads_to(trials):
                self._search = _Search(self.problem)
            return self._search.ask(trials, count, self.is_late)


class _Search:
    """All trials, and an optimizer that was asked and told the newest of them, in the order in which it came about."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._codec = problem, Codec(problem.space)
        # Those with one value say nothing.
        self._searched = [index for index, dimension in enumerate(problem.space.dimensions) if dimension.size != 1]
        self._optimizer: Any = None
        self._course = -1
        self._trials: list[tuple[Place, list[int] | None]] = []
        self._numbers: dict[Hashable, int] = {}
        self._untried = Untried(problem.space)
        self._told: dict[int, tuple[Evaluation, float | None]] = {}
        # Of trials that have not been told: what the optimizer calls them, None if it has not asked; and their rows.
        self._open: dict[int, list[Any]] = {}
        self._rows: dict[int, Floats] = {}
        self._finished: list[float] = []
        self._worst = -math.inf
        self._waiting: list[tuple[Any, float | None]] = []

    def _begin(self) -> None:
        """Another optimizer, which is told the best."""
        problem = self._problem
        self._course = len(self._trials) // COURSE_TRIALS
        self._seed("begin")
        parameters = [_parameter(problem.space.dimensions[index]) for index in self._searched]
        together = nevergrad.p.Instrumentation(*parameters)
        together.random_state.seed(problem.seed_of(len(self._trials), "nevergrad"))
        # For one worker alone NGOpt takes methods that run in threads, and wait for ever where one trial is asked for
        # before the last was told.
        self._optimizer = nevergrad.optimizers.registry[problem.settings["Optimizer"]](
            together,
            budget=min(problem.max_trials or PLANNED_TRIALS, COURSE_TRIALS),
            num_workers=max(2, problem.parallel),
        )
        self._open = {number: [None] for number in self._open}
        self._waiting = []
        losses = {number: self._worst if loss is None else loss for number, (_, loss) in self._told.items()}
        for number in sorted(sorted(losses, key=lambda number: (losses[number], number))[:COURSE_BEST]):
            self._tell_loss(number, None, self._told[number][1])

    def leads_to(self, trials: Sequence[Evaluation]) -> bool:
        """Whether these are the trials that it knows, and perhaps more."""
        return (
            len(trials) >= len(self._trials)
            and all(
                (trial.place, trial.notes.get(TOLD)) == known
                for trial, known in zip(trials, self._trials, strict=False)
            )
            # Lists look at what is the same object no further.
            and [trials[number - 1] for number in self._told] == [trial for trial, _ in self._told.values()]
        )

    def ask(self, trials: Sequence[Evaluation], count: int, is_late: Callable[[], bool]) -> Answer:
        """The next ones, after what is new has been told."""
        # Optimizers before the one that is at work now left nothing but trials.
        begin = len(trials) - len(trials) % COURSE_TRIALS
        for trial in trials[len(self._trials) :]:
            told = trial.notes.get(TOLD)
            if told is None:
                self._add(trial.place, None, None)
                continue
            self._tell(trials, told)
            place, candidate = self._next() if len(self._trials) >= begin else (None, None)
            # With another version of a library it may have come out otherwise: what was tried counts.
            self._add(trial.place, told, candidate if place == trial.place else None)
        ended = [number for number in sorted(self._open) if trials[number - 1].state is not TrialState.PENDING]
        self._tell(trials, ended)
        suggestions: list[Suggestion] = []
        is_exhausted = False
        while len(suggestions) < count:
            place, candidate = self._next()
            if place is None:
                is_exhausted = True
                break
            suggestions.append(Suggestion(place, {TOLD: ended}))
            self._add(place, ended, candidate)
            ended = []
            if is_late():
                break
        return Answer(suggestions, is_exhausted)

    def _add(self, place: Place, told: list[int] | None, candidate: Any) -> None:
        self._trials.append((place, told))
        number = len(self._trials)
        self._untried.add(place)
        self._numbers.setdefault(self._problem.space.key(place), number)
        self._rows[number] = self._codec.row(place)
        self._open[number] = [candidate]

    def _next(self) -> tuple[Place | None, Any]:
        """A place that was not tried, and what the optimizer calls it; None for both when there is none left."""
        if self._untried.left == 0:
            return None, None
        if self._searched and len(self._trials) // COURSE_TRIALS != self._course:
            self._begin()
        self._seed("ask")
        near: tuple[Place, Any] | None = None
        for _ in range(ATTEMPTS):
            candidate = self._asked()
            if candidate is None:
                break
            place = self._place(candidate)
            if place not in self._untried:
                self._repeated(self._numbers[self._problem.space.key(place)], candidate)
            elif self._is_apart(place):
                return place, candidate
            else:
                near = near or (place, candidate)
        if near is not None:
            return near
        return self._untried.draw(self._problem.random(len(self._trials), "draw")), None

    def _asked(self) -> Any:
        """None when there is no optimizer, or all of its design was tried."""
        if self._optimizer is None:
            return None
        try:
            return self._optimizer.ask()
        except AssertionError as error:
            if "Over the budget" not in str(error):
                raise
            return None

    def _is_apart(self, place: Place) -> bool:
        """False when one that runs says as good as the same."""
        row, sizes = self._codec.row(place), self._codec.sizes
        apart = np.abs(np.reshape(list(self._rows.values()), (-1, self._codec.width)) - row)
        return bool(np.all(np.any((apart > NEAR) | ((apart > 0) & (sizes > 0)), axis=1)))

    def _repeated(self, number: int, candidate: Any) -> None:
        if number in self._told:
            self._tell_loss(number, candidate, self._told[number][1])
        else:
            self._open[number].append(candidate)

    def _tell(self, trials: Sequence[Evaluation], numbers: Sequence[int]) -> None:
        self._seed("tell")
        for number in numbers:
            trial = trials[number - 1]
            # One that was told may run again after a restart of the study.
            if trial.state is TrialState.PENDING or number not in self._open:
                continue
            loss = self._loss(trial)
            self._told[number] = trial, loss
            del self._rows[number]
            for candidate in self._open.pop(number):
                self._tell_loss(number, candidate, loss)

    def _loss(self, trial: Evaluation) -> float | None:
        """None for the worst so far."""
        if trial.losses is None or not math.isfinite(trial.losses[0]):
            return None
        loss = _bounded(trial.losses[0])
        if trial.state is TrialState.FAILED and self._finished:
            loss = max(loss, self._finished[len(self._finished) // 2])
        elif trial.state is TrialState.FINISHED:
            bisect.insort(self._finished, loss)
        self._worst = max(self._worst, loss)
        return loss

    def _tell_loss(self, number: int, candidate: Any, loss: float | None) -> None:
        """Tell the optimizer of a candidate, None when it has not asked for that trial."""
        if self._optimizer is None:
            return
        if candidate is None:
            place = self._trials[number - 1][0]
            values = [_argument(self._problem.space.dimensions[index], place[index]) for index in self._searched]
            candidate = self._optimizer.parametrization.spawn_child(new_value=(tuple(values), {}))
        self._waiting.append((candidate, loss))
        # How bad the worst is, some trial has to say first.
        if math.isinf(self._worst):
            return
        for waiting, known in self._waiting:
            with suppress(TellNotAskedNotSupportedError):
                self._optimizer.tell(waiting, self._worst if known is None else known)
        self._waiting = []

    def _place(self, candidate: Any) -> Place:
        coordinates: list[Coordinate] = [0] * len(self._problem.space.dimensions)
        for index, value in zip(self._searched, candidate.args, strict=True):
            coordinates[index] = _coordinate(self._problem.space.dimensions[index], value)
        return tuple(coordinates)

    def _seed(self, purpose: str) -> None:
        # Some optimizers draw from it, too.
        np.random.seed(self._problem.seed_of(len(self._trials), purpose))


def _has_weights(dimension: Dimension) -> bool:
    return dimension.size is not None and not dimension.is_ordered and dimension.size <= MOST_WEIGHTS


def _parameter(dimension: Dimension) -> Any:
    if _has_weights(dimension):
        # The one with most weight: drawing by weights would be noise.
        return nevergrad.p.Choice(range(dimension.size or 0), deterministic=True)
    return nevergrad.p.Scalar(lower=0.0, upper=1.0)


def _coordinate(dimension: Dimension, value: Any) -> Coordinate:
    if _has_weights(dimension):
        return int(value)
    share = min(1.0, max(0.0, float(value)))
    return share if dimension.size is None else min(dimension.size - 1, int(share * dimension.size))


def _argument(dimension: Dimension, coordinate: Coordinate) -> Coordinate:
    """A number of counted ones is the middle of its cell."""
    return coordinate if dimension.size is None or _has_weights(dimension) else (coordinate + 0.5) / dimension.size


def _bounded(loss: float) -> float:
    size = abs(loss)
    return loss if size <= LARGE else math.copysign(LARGE * (1.0 + math.log10(size / LARGE)), loss)


@contextmanager
def _own_numbers() -> Iterator[None]:
    """Leaves numpy's own random numbers as they were."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
