"""The trials of a study as arrays: what models of the loss are made of."""

from __future__ import annotations

import bisect
import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tuning_service.algorithms.base import Evaluation, Known, TrialState
from tuning_service.domain.space import Place, Space

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

# In a dimension of numbers from 0 to 1: what is nearer to a trial that runs says nothing that this one will not.
NEAR = 1e-3


class Codec:
    """Places as rows of numbers. Ordered dimensions lie from 0 to 1, those with finitely many values at the centres of
    cells of equal width; a choice is the index of its value."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.is_choice = np.array([not dimension.is_ordered for dimension in space.dimensions], dtype=bool)
        self.sizes = np.array([float(dimension.size or 0) for dimension in space.dimensions])
        self.width = len(space.dimensions)
        self._is_stepped = (self.sizes > 0) & ~self.is_choice

    def row(self, place: Place) -> Floats:
        numbers = np.array(place, dtype=np.float64)
        numbers[self._is_stepped] = (numbers[self._is_stepped] + 0.5) / self.sizes[self._is_stepped]
        return numbers

    def place(self, row: Floats) -> Place:
        """The place whose cell a row lies in."""
        return tuple(
            min(int(dimension.size) - 1, max(0, int(number if choice else number * dimension.size)))
            if dimension.size
            else min(1.0, max(0.0, float(number)))
            for dimension, number, choice in zip(self.space.dimensions, row, self.is_choice, strict=True)
        )

    def snapped(self, rows: Floats) -> Floats:
        """Rows moved to the centres of their cells and between the ends of each dimension."""
        rows = rows.copy()
        ordered = ~self.is_choice
        rows[:, ordered] = np.clip(rows[:, ordered], 0.0, 1.0)
        sizes = self.sizes[self._is_stepped]
        cells = np.minimum(np.floor(rows[:, self._is_stepped] * sizes), sizes - 1)
        rows[:, self._is_stepped] = (cells + 0.5) / sizes
        return rows

    def spread(self, numbers: Floats) -> Floats:
        """Rows of numbers that are uniform from 0 to 1 as rows of the space."""
        rows = numbers.copy()
        rows[:, self.is_choice] = np.floor(rows[:, self.is_choice] * self.sizes[self.is_choice])
        return self.snapped(rows)


class Untried:
    """Which places are left. Where they can be counted each has a number, and those that were tried are kept in order:
    drawing evenly among the others takes one step, however few they are."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._size = space.size
        self._tried: list[int] = []
        self._keys: set[Hashable] = set()

    def add(self, place: Place) -> None:
        if self._size is None:
            self._keys.add(hash(self._space.key(place)))
            return
        number = self._number(place)
        at = bisect.bisect_left(self._tried, number)
        if at == len(self._tried) or self._tried[at] != number:
            self._tried.insert(at, number)

    def remove(self, place: Place) -> None:
        if self._size is None:
            self._keys.discard(hash(self._space.key(place)))
        elif place not in self:
            del self._tried[bisect.bisect_left(self._tried, self._number(place))]

    def __contains__(self, place: Place) -> bool:
        if self._size is None:
            return hash(self._space.key(place)) not in self._keys
        number = self._number(place)
        at = bisect.bisect_left(self._tried, number)
        return at == len(self._tried) or self._tried[at] != number

    @property
    def left(self) -> int | None:
        """How many places are left; None when they cannot be counted."""
        return None if self._size is None else self._size - len(self._tried)

    def draw(self, numbers: random.Random) -> Place | None:
        """One of those that are left, each as likely as the other; None when there is none."""
        if self._size is None:
            return tuple(
                numbers.randrange(dimension.size) if dimension.size else numbers.random()
                for dimension in self._space.dimensions
            )
        left = self._size - len(self._tried)
        return self.nth(numbers.randrange(left)) if left else None

    def nth(self, rank: int) -> Place:
        """The one that has `rank` others before it. Only where they can be counted."""
        # So many tried ones lie before it that `rank` untried ones do, too.
        before = bisect.bisect_right(range(len(self._tried)), rank, key=lambda at: self._tried[at] - at)
        return self._place(rank + before)

    def _number(self, place: Place) -> int:
        number = 0
        for dimension, coordinate in zip(self._space.dimensions, place, strict=True):
            size = dimension.size or 1
            number = number * size + min(size - 1, max(0, int(coordinate)))
        return number

    def _place(self, number: int) -> Place:
        coordinates = []
        for dimension in reversed(self._space.dimensions):
            number, coordinate = divmod(number, dimension.size or 1)
            coordinates.append(coordinate)
        return tuple(reversed(coordinates))


class History:
    """All trials of a study, behind what is known from others. One that has read the first of them reads only what is
    new; made anew it is the same. What is known is no trial: its places may be tried."""

    def __init__(self, space: Space, objectives: int, known: Sequence[Known] = ()) -> None:
        self.codec = Codec(space)
        self._space, self._objectives, self._known = space, objectives, known
        self._clear()

    def _clear(self) -> None:
        self.untried = Untried(self._space)
        self._places: list[Place] = []
        self._rows = np.empty((0, self.codec.width))
        # Those of FAILED trials, and what is no number, are infinite; of pending ones, NaN.
        self._losses = np.empty((0, self._objectives))
        self._failed = np.empty(0, dtype=bool)
        self._open: list[int] = []
        for one in self._known:
            index = self._append(one.place)
            self._losses[index] = one.losses
            self._open.remove(index)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, trials: Sequence[Evaluation]) -> None:
        """Know these trials, and no others."""
        first = len(self._known)
        if first + len(trials) < len(self):
            self._clear()
        still_open = [index for index in self._open if not self._settle(index, trials[index - first])]
        self._open = still_open
        for trial in trials[len(self) - first :]:
            index = self.add(trial.place)
            if self._settle(index, trial):
                self._open.remove(index)

    def add(self, place: Place) -> int:
        """One more trial, pending; returns its index."""
        self.untried.add(place)
        return self._append(place)

    def _append(self, place: Place) -> int:
        index = len(self._places)
        if index == len(self._rows):
            more = max(64, index)
            self._rows = np.concatenate([self._rows, np.zeros((more, self.codec.width))])
            self._losses = np.concatenate([self._losses, np.full((more, self._objectives), np.nan)])
            self._failed = np.concatenate([self._failed, np.zeros(more, dtype=bool)])
        self._rows[index] = self.codec.row(place)
        self._losses[index] = np.nan
        self._failed[index] = False
        self._open.append(index)
        self._places.append(place)
        return index

    def forget_from(self, trials: int) -> None:
        """Take back what was added beyond so many trials; none of it may repeat an earlier one."""
        length = len(self._known) + trials
        gone, self._places = self._places[length:], self._places[:length]
        self._open = [index for index in self._open if index < length]
        for place in gone:
            self.untried.remove(place)

    def _settle(self, index: int, trial: Evaluation) -> bool:
        if trial.state is TrialState.PENDING:
            return False
        losses = np.array(trial.losses if trial.losses else [np.inf] * self._objectives, dtype=np.float64)
        self._losses[index] = losses if np.all(np.isfinite(losses)) else np.inf
        self._failed[index] = trial.state is TrialState.FAILED
        return True

    @property
    def pending(self) -> Floats:
        """Rows of the trials that have not ended."""
        return self._rows[self._open]

    def is_new(self, row: Floats) -> bool:
        """Whether it was not tried, and nothing that runs is as good as the same."""
        if self.codec.place(row) not in self.untried:
            return False
        apart = np.abs(self.pending - row)
        # Other values of choices and of counted numbers are other trials.
        return bool(np.all(np.any((apart > NEAR) | ((apart > 0) & (self.codec.sizes > 0)), axis=1)))

    def few_left(self, most: int) -> Floats | None:
        """Rows of all places that were not tried, where there are at most so many."""
        left = self.untried.left
        if left is None or left > most:
            return None
        return np.array([self.codec.row(self.untried.nth(rank)) for rank in range(left)])

    @property
    def ended(self) -> Integers:
        """Indices of trials that have ended and say something: with losses, or failed."""
        return np.flatnonzero(~np.isnan(self._losses[: len(self), 0]))

    def rows(self, indices: Any) -> Floats:
        return self._rows[indices]

    @property
    def with_losses(self) -> int:
        """How many trials have ended with losses."""
        return int(np.sum(np.isfinite(self._losses[: len(self), 0])))

    def losses(self, indices: Integers) -> Floats:
        """Their losses, one column an objective, all finite. What failed counts as the worst seen; what was given up
        with losses on its way counts as those, but not better than the median."""
        losses = self._losses[indices].copy()
        finished = losses[np.isfinite(losses[:, 0]) & ~self._failed[indices]]
        if len(finished) == 0:
            finished = losses[np.isfinite(losses[:, 0])]
        if len(finished) == 0:
            return np.zeros_like(losses)
        given_up = self._failed[indices] & np.isfinite(losses[:, 0])
        losses[given_up] = np.maximum(losses[given_up], np.median(finished, axis=0))
        missing = ~np.isfinite(losses[:, 0])
        losses[missing] = np.max(losses[~missing], axis=0)
        return losses
