"""Record and read curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from servicekit.errors import invalid
from servicekit.identity import current_identity

from training_service.domain.metrics import MetricPoint, downsample
from training_service.usecases.ports import Metrics

MAX_SERIES_LENGTH = 128


class RecordMetrics:
    """Callable with points of one job; a worker may write those of its own job only. Repeatable."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, points: Sequence[MetricPoint]) -> None:
        for job_id in {point.job_id for point in points}:
            current_identity().require_job(job_id)
        for point in points:
            if not point.series or len(point.series) > MAX_SERIES_LENGTH:
                raise invalid("series", point.series, f"1 to {MAX_SERIES_LENGTH} characters")
            if point.step < 0:
                raise invalid("step", point.step, "0 or more")
        # A diverged run reports NaN; it has no place on a curve and must not cost the other points.
        await self._metrics.upsert([point for point in points if math.isfinite(point.value)])


async def read_curves(
    metrics: Metrics, job_id: str, series: Sequence[str], max_points: int
) -> dict[str, list[MetricPoint]]:
    """Each series of a job with at most `max_points` points (0: all)."""
    points = await metrics.read(job_id, series)
    return {
        name: downsample(list(group), max_points) for name, group in groupby(points, key=lambda point: point.series)
    }
