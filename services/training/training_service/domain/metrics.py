"""Points of a run's curves."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_SERIES_LENGTH = 128
MAX_STEP = 2**31 - 1
MAX_ATTEMPT = 2**31 - 1


@dataclass(frozen=True)
class MetricPoint:
    """One value of one series (`train_loss`, say). `time` is in seconds since the epoch."""

    job_id: str
    attempt: int
    series: str
    step: int
    value: float
    time: float = 0.0

    @property
    def is_storable(self) -> bool:
        """False for what has no place on a curve: a run that diverged reports NaN, a user program anything."""
        is_named = 0 < len(self.series) <= MAX_SERIES_LENGTH and self.series.isprintable()
        is_placed = 0 <= self.step <= MAX_STEP and 1 <= self.attempt <= MAX_ATTEMPT
        return is_named and is_placed and math.isfinite(self.value) and math.isfinite(self.time)


@dataclass(frozen=True)
class SpoolPlace:
    """Where to go on reading what a job's workers wrote: an attempt, and a byte of its metrics.

    `offset` is None where that attempt has not been looked at.
    """

    attempt: int = 1
    offset: int | None = None


def ranges_between(first: int, last: int, most: int) -> range:
    """Where equally wide ranges of the steps between `first` and `last` begin; `.step` is how wide they are.

    Two points of each, beside the first and the last point, are at most `most`, which is at least 4.
    """
    count = (most - 2) // 2
    width = max(1, -(-(last - first - 1) // count))
    return range(first + 1, last, width)
