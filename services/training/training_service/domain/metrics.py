"""Points of a run's curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricPoint:
    """One value of one series (`train_loss`, say); writing it again replaces it."""

    job_id: str
    attempt: int
    series: str
    step: int
    value: float


def downsample(points: Sequence[MetricPoint], max_points: int) -> list[MetricPoint]:
    """At most `max_points` of them, evenly spread, the first and the last always among them."""
    if max_points <= 0 or len(points) <= max_points:
        return list(points)
    if max_points == 1:
        return [points[-1]]
    last = len(points) - 1
    return [points[round(index * last / (max_points - 1))] for index in range(max_points)]
