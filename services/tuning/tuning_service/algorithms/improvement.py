"""How much better than the best a place is expected to be, and where that is most.

The logarithm of the expected improvement, without the zeros and the flats that the plain one has far from anything
good: Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization" (2023).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import erfcx, ndtr

from tuning_service.algorithms.gaussian_process import GaussianProcess
from tuning_service.algorithms.history import Codec, Flags, Floats

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
# Below it the series is more exact than what is rounded.
FAR = -200.0
STEPS, ROUNDS = 40, 3
# Of a dimension with so many values each is looked at; between more it is climbed as if there were no steps.
FEW = 20


def log_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Logarithm of E[max(0, best - loss)] for normally distributed losses."""
    below = (best - mean) / deviation
    near = np.maximum(below, -1.0)
    plain = np.exp(-0.5 * near**2 - LOG_ROOT_2PI) + near * ndtr(near)
    far = np.minimum(below, -1.0)
    tail = np.where(far < FAR, far**-2.0, 1 + far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2)))
    of_far = -0.5 * far**2 - LOG_ROOT_2PI + np.log(tail)
    found: Floats = np.where(below > -1.0, np.log(plain), of_far) + np.log(deviation)
    return found


def log_improvement_slopes(mean: float, deviation: float, best: float) -> tuple[float, float, float]:
    """The same at one place, and its derivatives by mean and deviation."""
    below = (best - mean) / deviation
    if below > -1.0:
        density = math.exp(-0.5 * below**2 - LOG_ROOT_2PI)
        chance = float(ndtr(below))
        improvement = density + below * chance
        value = math.log(improvement)
    else:
        # Everything divided by the density, which may be zero.
        chance = math.sqrt(math.pi / 2) * float(erfcx(-below / math.sqrt(2)))
        improvement = below**-2.0 if below < FAR else 1 + below * chance
        density = 1.0
        value = -0.5 * below**2 - LOG_ROOT_2PI + math.log(improvement)
    return value + math.log(deviation), -chance / (improvement * deviation), density / (improvement * deviation)


class Climb:
    """From a place to a better one nearby."""

    def __init__(self, model: GaussianProcess, best: float, codec: Codec, good_rows: Floats) -> None:
        self._model, self._best, self._codec = model, best, codec
        sizes = codec.sizes
        self._smooth: Flags = ~codec.is_choice & ((sizes == 0) | (sizes > FEW))
        # What may stand in each of the other columns.
        self._values: dict[int, Floats] = {
            int(column): (
                (np.unique(good_rows[:, column]) if sizes[column] > FEW else np.arange(sizes[column]))
                if codec.is_choice[column]
                else (np.arange(sizes[column]) + 0.5) / sizes[column]
            )
            for column in np.flatnonzero(~self._smooth)
        }

    def score(self, rows: Floats) -> Floats:
        return log_improvement(*self._model.predict(rows), self._best)

    def climb(self, row: Floats) -> Floats:
        """Numbers by their slopes, everything else value by value."""
        for _ in range(ROUNDS):
            before = row
            if self._smooth.any():
                row = self._codec.snapped(self._slide(row)[None])[0]
            row = self._exchange(row)
            if not self._values or np.array_equal(before, row):
                break
        return row

    def _slide(self, start: Floats) -> Floats:
        row = start.copy()

        def negative(numbers: Floats) -> tuple[float, Floats]:
            row[self._smooth] = numbers
            mean, deviation, mean_slope, deviation_slope = self._model.slopes(row)
            value, by_mean, by_deviation = log_improvement_slopes(mean, deviation, self._best)
            return -value, -(by_mean * mean_slope + by_deviation * deviation_slope)[self._smooth]

        found = minimize(
            negative,
            start[self._smooth],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * int(self._smooth.sum()),
            options={"maxiter": STEPS, "ftol": 1e-8},
        )
        row[self._smooth] = found.x
        return row

    def _exchange(self, row: Floats) -> Floats:
        """One value in one column after the other, as long as that is better."""
        sizes = self._codec.sizes
        for _ in range(max(3, len(row))):
            others = [row]
            for column in range(len(row)):
                near = row[column] + np.array([-1.0, 1.0]) / sizes[column] if sizes[column] else np.empty(0)
                for value in self._values.get(column, near):
                    if value != row[column]:
                        others.append(row.copy())
                        others[-1][column] = value
            if len(others) == 1:
                return row
            rows = self._codec.snapped(np.array(others))
            scores = self.score(rows)
            best = int(np.argmax(scores))
            if scores[best] <= scores[0] + 1e-9:
                return row
            row = rows[best]
        return row
