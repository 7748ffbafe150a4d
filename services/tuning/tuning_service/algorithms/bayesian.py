"""Bayesian optimisation: a Gaussian process says where the best of what was seen is likely to be beaten by much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from tuning_service.algorithms.gaussian_process import GaussianProcess, Priors
from tuning_service.algorithms.history import Floats, History, Integers
from tuning_service.algorithms.improvement import Climb
from tuning_service.algorithms.model_search import MODEL, ModelSearch
from tuning_service.domain.evaluation import Problem, Suggestion

CANDIDATES = 1_000
# So many trials the process is fitted to at most, and fewer where that many dimensions would make it slow.
POINTS, NUMBERS = 200, 2_000
# While there are few trials their likely parameters lie apart: the search for them begins in several places.
FEW = 60
STEPS = 50
# Parts of each dimension in which places near the best are looked for; how many of the best, and of places near each.
NEARBY, BEST, EACH = (0.1, 0.02), 5, 25
CLIMBS, APART = 4, 0.05
# With several objectives (Knowles, ParEGO, 2006): how much of their weighted sum is added to the worst of them.
SUM_SHARE = 0.05
# Losses that differ by less than this part of the largest are the same; and so many times what lies between the
# quartiles is as far from the median as any.
SAME, FURTHEST = 1e-15, 1e6


class Bayesian(ModelSearch):
    """Settings: InitPoints trials of a design first; then CubeSize places anywhere are candidates, beside some near the
    best. With Noiseless a loss is taken for exact, else its noise is learned.

    What runs counts as a loss that is expected there. The notes of a trial hold the parameters of the process, with
    which the next search for them begins.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, warm_up=int(problem.settings["InitPoints"]))
        self._candidates = int(problem.settings["CubeSize"] or CANDIDATES)
        # Matrices are small: threads would wait for each other, and sums would come out otherwise on other machines.
        self._threads = ThreadpoolController()
        width = max(1, len(problem.space.dimensions))
        self._points = max(50, min(POINTS, NUMBERS // width))
        self._priors = Priors(
            length=(0.5 * math.log(width), 1.0),
            variance=(0.0, 1.0),
            noise=None if problem.settings["Noiseless"] else (-9.0, 2.5),
        )

    def propose(self, history: History, numbers: np.random.Generator, notes: Mapping[str, Any]) -> Suggestion | None:
        with self._threads.limit(limits=1, user_api="blas"):
            return self._proposed(history, numbers, notes)

    def _proposed(self, history: History, numbers: np.random.Generator, notes: Mapping[str, Any]) -> Suggestion | None:
        ended = history.ended
        losses = scalar(history.losses(ended), numbers)
        chosen = best_and_newest(losses, self._points)
        rows, targets = history.rows(ended[chosen]), normal(losses[chosen])
        model = GaussianProcess(rows, targets, history.codec.is_choice, self._priors)
        parameters = model.fit(self._starts(model, notes, numbers), STEPS)
        pending = history.pending
        if len(pending):
            expected, _ = model.predict(pending)
            together = np.concatenate([rows, pending]), np.concatenate([targets, expected])
            model = GaussianProcess(*together, history.codec.is_choice, self._priors)
            model.condition(parameters)
        good_rows = rows[np.argsort(targets, kind="stable")]
        row = self._best_of(model, float(np.min(targets)), history, good_rows, numbers)
        if row is None:
            return None
        return Suggestion(history.codec.place(row), {MODEL: [round(float(number), 4) for number in parameters]})

    def _starts(
        self, model: GaussianProcess, notes: Mapping[str, Any], numbers: np.random.Generator
    ) -> Sequence[Floats]:
        likely = model.likely
        known = notes.get(MODEL, ())
        starts = [np.array(known, dtype=np.float64)] if len(known) == len(likely) else []
        if len(model.rows) <= FEW or not starts:
            starts.append(likely)
        if len(model.rows) <= FEW:
            elsewhere = likely.copy()
            elsewhere[:-2] += numbers.normal(0.0, 1.5, len(likely) - 2)
            starts.append(elsewhere)
        return starts

    def _best_of(
        self, model: GaussianProcess, best: float, history: History, good_rows: Floats, numbers: np.random.Generator
    ) -> Floats | None:
        climb = Climb(model, best, history.codec, good_rows[: 4 * BEST])
        rows = history.few_left(self._candidates)
        if rows is None:
            rows = np.concatenate([self._anywhere(history, numbers), self._near(history, good_rows[:BEST], numbers)])
            scores = climb.score(rows)
            found = np.array([climb.climb(row) for row in _apart(rows[np.argsort(-scores, kind="stable")])])
            rows = np.concatenate([found, rows])
            scores = np.concatenate([climb.score(found), scores])
        else:
            scores = climb.score(rows)
        order = np.argsort(-scores, kind="stable")
        return next((rows[index] for index in order if history.is_new(rows[index])), None)

    def _anywhere(self, history: History, numbers: np.random.Generator) -> Floats:
        return history.codec.spread(numbers.random((self._candidates, history.codec.width)))

    def _near(self, history: History, good_rows: Floats, numbers: np.random.Generator) -> Floats:
        """Places that differ from a good one by a little in half of the numbers, and in a fifth of the choices."""
        codec = history.codec
        centres = np.repeat(good_rows, EACH, axis=0)
        rows = []
        for part in NEARBY:
            moved = centres + numbers.normal(0.0, part, centres.shape)
            other = np.floor(numbers.random(centres.shape) * codec.sizes)
            moves = numbers.random(centres.shape) < np.where(codec.is_choice, 0.2, 0.5)
            rows.append(np.where(moves, np.where(codec.is_choice, other, moved), centres))
        return codec.snapped(np.concatenate(rows))


def _apart(rows: Floats) -> list[Floats]:
    """The first few that are not all alike."""
    found: list[Floats] = []
    for row in rows:
        if all(np.any(np.abs(row - other) > APART) for other in found):
            found.append(row)
            if len(found) == CLIMBS:
                break
    return found


def scalar(losses: Floats, numbers: np.random.Generator) -> Floats:
    """One loss for each row. Of several objectives it is an augmented Chebyshev distance with weights drawn at random,
    so that one ask after another the whole front is looked for."""
    if losses.shape[1] == 1:
        return losses[:, 0]
    least = np.min(losses, axis=0)
    span = np.max(losses, axis=0) - least
    shares = (losses - least) / np.where(span > 0, span, 1.0)
    weights = numbers.dirichlet(np.ones(losses.shape[1]))
    found: Floats = np.max(shares * weights, axis=1) + SUM_SHARE * (shares @ weights)
    return found


def best_and_newest(losses: Floats, most: int) -> Integers:
    """Indices, in order: all, or one half the best and the other the newest of the rest."""
    if len(losses) <= most:
        return np.arange(len(losses))
    best = np.argsort(losses, kind="stable")[: most - most // 2]
    rest = np.setdiff1d(np.arange(len(losses)), best, assume_unique=True)
    return np.sort(np.concatenate([best, rest[-(most // 2) :]]))


def normal(losses: Floats) -> Floats:
    """Bent so that they look as if drawn from a normal distribution with mean 0 and variance 1: losses may go over
    decades, and a smooth function over them fits nothing. After Yeo and Johnson, "A New Family of Power
    Transformations" (2000); the power is the most likely one under a normal prior around 1, which bends nothing."""
    # By a power of two, which rounds nothing: squares of losses may be too large for a number.
    shares = np.ldexp(losses, -int(np.frexp(np.max(np.abs(losses)))[1]))
    low, middle, high = np.percentile(shares, [25, 50, 75])
    scale = high - low if high - low > SAME else float(np.std(shares))
    if scale <= SAME:
        return np.zeros_like(losses)
    numbers = np.clip((shares - middle) / scale, -FURTHEST, FURTHEST)
    logarithms = np.sign(numbers) * np.log1p(np.abs(numbers))
    best, bent = -math.inf, numbers
    for power in np.linspace(-3.0, 3.0, 25):
        tried = _bent(numbers, float(power))
        variance = float(np.var(tried))
        if not 0.0 < variance < math.inf:
            continue
        likelihood = (power - 1) * float(np.sum(logarithms)) - 0.5 * len(numbers) * math.log(variance)
        likelihood -= 0.5 * (power - 1) ** 2
        if likelihood > best:
            best, bent = likelihood, tried
    return (bent - np.mean(bent)) / (float(np.std(bent)) or 1.0)


def _bent(numbers: Floats, power: float) -> Floats:
    above, below = np.maximum(numbers, 0.0), np.maximum(-numbers, 0.0)
    of_above = np.log1p(above) if abs(power) < 1e-9 else ((1 + above) ** power - 1) / power
    of_below = np.log1p(below) if abs(power - 2) < 1e-9 else ((1 + below) ** (2 - power) - 1) / (2 - power)
    return np.asarray(of_above - of_below)
