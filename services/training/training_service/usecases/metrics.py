"""Record the curves of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from servicekit.errors import invalid
from servicekit.identity import current_identity

from training_service.domain.metrics import MetricPoint
from training_service.usecases.ports import Metrics

MAX_SERIES_LENGTH = 128


class RecordMetrics:
    """Callable with points of one job; a worker may write those of its own job only. Repeatable."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, job_id: str, points: Sequence[MetricPoint]) -> int:
        """How many points were new; 400 naming what is wrong with one, 403 for another worker."""
        current_identity().require_job(job_id)
        for point in points:
            if not point.series or len(point.series) > MAX_SERIES_LENGTH:
                raise invalid("series", point.series, f"1 to {MAX_SERIES_LENGTH} characters")
            if point.step < 0:
                raise invalid("step", point.step, "0 or more")
        # A diverged run reports NaN; it has no place on a curve and must not cost the other points.
        return await self._metrics.add([point for point in points if math.isfinite(point.value)])
