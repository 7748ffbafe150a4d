"""A Gaussian process over places: what the loss is likely to be where nothing was tried.

Matern 5/2 kernel with a length a dimension; any two values of a choice are as far apart as any others. Its parameters
are the most likely ones under log-normal priors. Formulas: Rasmussen and Williams, "Gaussian Processes for Machine
Learning" (2006), chapters 2, 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack
from scipy.optimize import minimize

from tuning_service.algorithms.history import Flags, Floats

JITTER = 1e-6
ROOT_5 = math.sqrt(5.0)
IMPOSSIBLE = 1e10


@dataclass(frozen=True)
class Priors:
    """Means and deviations of the logarithms of lengths, variance and noise, for losses with a variance of 1. Without
    `noise` there is none."""

    length: tuple[float, float]
    variance: tuple[float, float]
    noise: tuple[float, float] | None


class GaussianProcess:
    """Of `losses` at `rows`, whose columns `is_choice` tells apart. Knows nothing before `fit` or `condition`.

    Parameters are logarithms: of an inverse squared length for each column, of the variance, of the noise.
    """

    def __init__(self, rows: Floats, losses: Floats, is_choice: Flags, priors: Priors) -> None:
        self.rows, self.losses, self._is_choice = rows, losses, is_choice
        count, width = rows.shape
        apart = np.square(rows.T[:, :, None] - rows.T[:, None, :])
        apart[is_choice] = apart[is_choice] != 0
        self._apart = apart.reshape(width, count * count)
        length, spread = priors.length
        noise = priors.noise or (math.log(JITTER), 1.0)
        self._means = np.array([-2 * length] * width + [priors.variance[0], noise[0]])
        self._deviations = np.array([2 * spread] * width + [priors.variance[1], noise[1]])
        self._low = np.array([-9.0] * width + [-4.0, math.log(JITTER)])
        self._high = np.array([9.0] * width + [4.0, 1.0])
        self._is_free = np.array([True] * (width + 1) + [priors.noise is not None])

    @property
    def likely(self) -> Floats:
        """The parameters that the priors hold for likely."""
        return np.clip(self._means, self._low, self._high)

    def fit(self, starts: Sequence[Floats], steps: int) -> Floats:
        """The most likely parameters that are found from one of `starts` in so many steps; what follows uses them."""
        free, parameters = self._is_free, self.likely
        bounds = list(zip(self._low[free], self._high[free], strict=True))

        def unlikelihood(numbers: Floats) -> tuple[float, Floats]:
            parameters[free] = numbers
            value, slopes = self.unlikelihood(parameters)
            return value, slopes[free]

        options = {"maxiter": steps, "ftol": 1e-5, "gtol": 1e-2}
        found = [
            minimize(
                unlikelihood,
                np.clip(start, self._low, self._high)[free],
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options=options,
            )
            for start in starts
        ]
        parameters[free] = min(found, key=lambda result: float(result.fun)).x
        self.condition(parameters)
        return parameters

    def condition(self, parameters: Floats) -> None:
        """Use these parameters."""
        width = len(parameters) - 2
        self._inverse_squares = np.exp(parameters[:width])
        self._variance = math.exp(parameters[width])
        count = len(self.rows)
        kernel = self._variance * _matern((self._inverse_squares @ self._apart).reshape(count, count))
        kernel[np.diag_indices(count)] += math.exp(parameters[width + 1]) + JITTER * self._variance
        factor = cholesky(kernel, lower=True)
        self._weights = cho_solve((factor, True), self.losses)
        self._inverse = _inverse(factor)

    def unlikelihood(self, parameters: Floats) -> tuple[float, Floats]:
        """Negative logarithm of how likely they are (up to a constant), and its slopes."""
        width, count = len(parameters) - 2, len(self.rows)
        inverse_squares = np.exp(parameters[:width])
        variance, noise = math.exp(parameters[width]), math.exp(parameters[width + 1])
        distance = ROOT_5 * np.sqrt((inverse_squares @ self._apart).reshape(count, count))
        decay = np.exp(-distance)
        kernel = variance * (1 + distance + distance**2 / 3) * decay
        noisy = kernel.copy()
        noisy[np.diag_indices(count)] += noise + JITTER * variance
        factor, failed = lapack.dpotrf(noisy, lower=1)
        if failed:
            return IMPOSSIBLE, np.zeros_like(parameters)
        weights = cho_solve((factor, True), self.losses)
        deviation = (parameters - self._means) / self._deviations
        value = 0.5 * float(self.losses @ weights + deviation @ deviation) + float(np.sum(np.log(np.diag(factor))))
        outer = _inverse(factor) - np.outer(weights, weights)
        trace = float(np.trace(outer))
        slopes = deviation / self._deviations
        by_square = outer * (-5.0 / 6.0 * variance) * (1 + distance) * decay
        slopes[:width] += 0.5 * inverse_squares * (self._apart @ by_square.ravel())
        slopes[width] += 0.5 * (float(np.sum(outer * kernel)) + JITTER * variance * trace)
        slopes[width + 1] += 0.5 * noise * trace
        return value, slopes

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Means and standard deviations of the losses there, without their noise."""
        ordered = ~self._is_choice
        scales = np.sqrt(self._inverse_squares[ordered])
        left, right = rows[:, ordered] * scales, self.rows[:, ordered] * scales
        squared = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)[None, :] - 2 * left @ right.T
        for column in np.flatnonzero(self._is_choice):
            squared += self._inverse_squares[column] * (rows[:, column, None] != self.rows[None, :, column])
        kernel = self._variance * _matern(np.maximum(squared, 0.0))
        variance = self._variance - np.sum((kernel @ self._inverse) * kernel, axis=1)
        return kernel @ self._weights, np.sqrt(np.maximum(variance, 1e-12 * self._variance))

    def slopes(self, row: Floats) -> tuple[float, float, Floats, Floats]:
        """Mean and standard deviation at one place, and their slopes; those of choices are zero."""
        apart = row - self.rows
        apart[:, self._is_choice] = apart[:, self._is_choice] != 0
        distance = ROOT_5 * np.sqrt(np.square(apart) @ self._inverse_squares)
        decay = np.exp(-distance)
        kernel = self._variance * (1 + distance + distance**2 / 3) * decay
        solved = self._inverse @ kernel
        variance = self._variance - float(kernel @ solved)
        deviation = math.sqrt(max(variance, 1e-12 * self._variance))
        by_row = (-5.0 / 3.0 * self._variance * (1 + distance) * decay)[:, None] * apart
        by_row *= np.where(self._is_choice, 0.0, self._inverse_squares)
        return float(kernel @ self._weights), deviation, self._weights @ by_row, -(solved @ by_row) / deviation


def _matern(squared: Floats) -> Floats:
    distance = ROOT_5 * np.sqrt(squared)
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _inverse(factor: Floats) -> Floats:
    """Of the matrix whose lower factor this is."""
    lower, _ = lapack.dpotri(factor, lower=1)
    found = np.tril(lower)
    found += np.tril(lower, -1).T
    return found
