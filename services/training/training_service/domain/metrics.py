"""Points of a run's curves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricPoint:
    """One value of one series (`train_loss`, say). `time` is in seconds since the epoch."""

    job_id: str
    attempt: int
    series: str
    step: int
    value: float
    time: float = 0.0
