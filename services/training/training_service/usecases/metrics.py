"""Record the curves of runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.jobs import JobFacts

from training_service.domain.metrics import MetricPoint
from training_service.usecases.ports import Metrics, MetricSpool

log = logging.getLogger(__name__)

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


class CollectMetrics:
    """Callable with an ended job: stores the points that its worker could not deliver. Repeatable."""

    def __init__(self, metrics: Metrics, spool: MetricSpool) -> None:
        self._metrics, self._spool = metrics, spool

    async def __call__(self, job: JobFacts) -> None:
        """A folder that has gone holds no points."""
        if not job.run_directory:
            return
        try:
            points = await self._spool.read(job.job_id, job.run_directory)
        except (OSError, ValueError, KeyError) as error:
            # A damaged spool must not keep the run from settling.
            log.warning("metrics of job %s cannot be read: %s", job.job_id, error)
            return
        await self._metrics.add(points)
