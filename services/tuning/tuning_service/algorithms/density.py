"""How dense trials are at a place: a mixture of kernels, one a trial, and one over everything."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from tuning_service.algorithms.history import Codec, Floats

# Silverman's rule for one dimension; Scott's power takes in all of them.
FACTOR = 1.059
LEAST_BANDWIDTH = 0.01
# What the spread of numbers is taken for before there are any, and how many trials that counts as.
USUAL_SPREAD, USUAL_TRIALS = 0.25, 1.0
# How many trials say that a choice may be any of its values.
ANY_CHOICE = 2.0
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
TINY = 1e-300


class Density:
    """Kernels are products over the dimensions: normal distributions cut off at 0 and 1 for numbers, their mass in a
    cell for those with finitely many values, and for choices the trial's own value more likely than the others. The
    last kernel is as wide as the space, with the weight of a trial."""

    def __init__(self, codec: Codec, rows: Floats, weights: Floats) -> None:
        self._codec = codec
        self._ordered = np.flatnonzero(~codec.is_choice)
        self._choices = np.flatnonzero(codec.is_choice)
        self._weights = np.append(weights, 1.0) / (np.sum(weights) + 1.0)
        sizes = codec.sizes[self._ordered]
        self._half_cells = np.where(sizes > 0, 0.5 / np.maximum(sizes, 1.0), 0.0)
        self._centres = np.vstack([rows[:, self._ordered], np.full(len(self._ordered), 0.5)])
        bandwidths = np.tile(self._bandwidths(rows, weights), (len(rows), 1))
        self._widths = np.vstack([bandwidths, np.ones(len(self._ordered))])
        self._low, self._high = ndtr(-self._centres / self._widths), ndtr((1 - self._centres) / self._widths)
        # The last one's own value is none.
        self._own = np.vstack([rows[:, self._choices], np.full(len(self._choices), -1.0)])
        self._any = np.append(np.full(len(rows), ANY_CHOICE / (len(rows) + ANY_CHOICE)), 1.0)[:, None]

    def _bandwidths(self, rows: Floats, weights: Floats) -> Floats:
        numbers = rows[:, self._ordered]
        count = len(rows)
        variance = np.zeros(len(self._ordered))
        if count:
            mean = np.average(numbers, axis=0, weights=weights)
            variance = np.average((numbers - mean) ** 2, axis=0, weights=weights)
        usual = USUAL_SPREAD**2 * USUAL_TRIALS
        spread = np.sqrt((variance * count + usual) / (count + USUAL_TRIALS))
        wide = FACTOR * spread * max(count, 1) ** (-1.0 / (self._codec.width + 4))
        return np.clip(wide, np.maximum(LEAST_BANDWIDTH, 2 * self._half_cells), 1.0)

    def draw(self, count: int, numbers: np.random.Generator) -> Floats:
        """Rows at random."""
        rows = np.empty((count, self._codec.width))
        kernels = numbers.choice(len(self._weights), size=count, p=self._weights)
        low, high = self._low[kernels], self._high[kernels]
        parts = low + numbers.random((count, len(self._ordered))) * (high - low)
        rows[:, self._ordered] = self._centres[kernels] + self._widths[kernels] * ndtri(
            np.clip(parts, 1e-15, 1 - 1e-15)
        )
        anything = np.floor(numbers.random((count, len(self._choices))) * self._codec.sizes[self._choices])
        is_any = numbers.random((count, len(self._choices))) < self._any[kernels]
        rows[:, self._choices] = np.where(is_any, anything, self._own[kernels])
        return rows

    def log(self, rows: Floats) -> Floats:
        """Logarithms of the density at rows of the space."""
        total = np.log(self._weights) + np.zeros((len(rows), 1))
        # Column by column: a few arrays of candidates by trials, not one for each dimension.
        for at, column in enumerate(self._ordered):
            centres, widths, half = self._centres[:, at], self._widths[:, at], self._half_cells[at]
            apart = rows[:, column, None] - centres
            if half:
                mass = ndtr((apart + half) / widths) - ndtr((apart - half) / widths)
                total += np.log(np.maximum(mass, TINY)) - math.log(2 * half)
            else:
                total -= 0.5 * (apart / widths) ** 2 + np.log(widths) + LOG_ROOT_2PI
            total -= np.log(self._high[:, at] - self._low[:, at])
        for at, column in enumerate(self._choices):
            other = self._any[:, 0] / self._codec.sizes[column]
            own = np.where(rows[:, column, None] == self._own[:, at], 1 - self._any[:, 0] + other, other)
            total += np.log(own)
        most = np.max(total, axis=1, keepdims=True)
        found: Floats = most[:, 0] + np.log(np.sum(np.exp(total - most), axis=1))
        return found
