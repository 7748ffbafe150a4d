"""Record and read the curves of runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.jobs import JobFacts

from training_service.domain.metrics import (
    MAX_ATTEMPT,
    MAX_SERIES_LENGTH,
    MAX_STEP,
    MetricPoint,
    SpoolPlace,
    ranges_between,
)
from training_service.domain.runs import Training
from training_service.usecases.ports import Metrics, MetricSpool, Trainings
from training_service.usecases.runs import ModelTrainings

DEFAULT_MAX_POINTS, MAX_POINTS = 1000, range(4, 10_001)
POINTS_PER_PAGE = 1000
BATCHES_PER_CALL = 4
FOLLOW_SECONDS = 1.0


class RecordMetrics:
    """Callable with points of one job; a worker may write those of its own job only. Repeatable."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, job_id: str, points: Sequence[MetricPoint]) -> int:
        """How many points were new; 400 naming what is wrong with one, 403 for another worker."""
        current_identity().require_job(job_id)
        for point in points:
            if not point.series or len(point.series) > MAX_SERIES_LENGTH:
                raise invalid("series", point.series[:MAX_SERIES_LENGTH], f"1 to {MAX_SERIES_LENGTH} characters")
            if not 0 <= point.step <= MAX_STEP:
                raise invalid("step", point.step, f"0 to {MAX_STEP}")
            if not 1 <= point.attempt <= MAX_ATTEMPT:
                raise invalid("attempt", point.attempt, f"1 to {MAX_ATTEMPT}")
        return await self._metrics.add([point for point in points if point.is_storable])


class CollectMetrics:
    """Callable with an ended job: stores the points that its worker could not deliver. Repeatable.

    A call stores some of them, so that the other runs need not wait, and the next one goes on; a new process begins
    again.
    """

    def __init__(self, metrics: Metrics, spool: MetricSpool) -> None:
        self._metrics, self._spool = metrics, spool
        self._places: dict[str, SpoolPlace] = {}

    async def __call__(self, job: JobFacts) -> bool:
        """True when all are stored. A folder that has gone holds no points."""
        if not job.run_directory:
            return True
        for _ in range(BATCHES_PER_CALL):
            place = self._places.get(job.job_id, SpoolPlace())
            points, following = await self._spool.read(job.job_id, job.run_directory, place)
            await self._metrics.add([point for point in points if point.is_storable])
            if following is None:
                self._places.pop(job.job_id, None)
                return True
            self._places[job.job_id] = following
        return False


@dataclass(frozen=True)
class Curves:
    """Which points are asked for; see ReadTrainingMetricsRequest."""

    series: Sequence[str] = ()
    since_step: int = 0
    max_points: int = 0
    follow: bool = False


class ThinnedCurves:
    """Callable with a job, a series, a step to begin at and a number; at most so many points of the curve, in memory
    no more than these. Of a longer one the first, the last, and of equally wide ranges the lowest and the highest."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, job_id: str, series: str, since_step: int, most: int) -> list[MetricPoint]:
        points = await self._metrics.page(job_id, series, since_step, most + 1)
        last = await self._metrics.last(job_id, series) if len(points) > most else None
        if last is None:
            return points
        ranges = ranges_between(points[0].step, last.step, most)
        return [points[0], *await self._metrics.extremes(job_id, series, ranges), last]


class ReadMetrics:
    """Callable with a training and what is asked for; gives the points, some of one series in memory at a time."""

    def __init__(self, metrics: Metrics, trainings: Trainings, model_trainings: ModelTrainings) -> None:
        self._metrics, self._trainings, self._model_trainings = metrics, trainings, model_trainings
        self._thin = ThinnedCurves(metrics)

    async def __call__(self, model_name: str, name: str, curves: Curves) -> AsyncIterator[MetricPoint]:
        """404 for what is not there, 403 for another user's training, 400 naming a field."""
        if curves.max_points and curves.max_points not in MAX_POINTS:
            raise invalid("maxPoints", curves.max_points, f"0, {MAX_POINTS[0]} to {MAX_POINTS[-1]}")
        if curves.since_step < 0:
            raise invalid("sinceStep", curves.since_step, "0 or more")
        training = await self._model_trainings.get(model_name, name)
        seen: dict[str, int] = {}
        async for point in self._thinned(training.job_id, curves):
            seen[point.series] = point.step
            yield point
        ended = not curves.follow
        while not ended:
            await asyncio.sleep(FOLLOW_SECONDS)
            # Asked before reading: what was written until it ended is read.
            ended = await self._has_ended(training)
            async for point in self._later(training.job_id, curves, seen):
                yield point

    async def _thinned(self, job_id: str, curves: Curves) -> AsyncIterator[MetricPoint]:
        most = curves.max_points or DEFAULT_MAX_POINTS
        for series in await self._series(job_id, curves):
            for point in await self._thin(job_id, series, curves.since_step, most):
                yield point

    async def _later(self, job_id: str, curves: Curves, seen: dict[str, int]) -> AsyncIterator[MetricPoint]:
        """Every point beyond the steps that were `seen` by series, which is brought up to date."""
        for series in await self._series(job_id, curves):
            page: list[MetricPoint] | None = None
            while page is None or len(page) == POINTS_PER_PAGE:
                since = seen.get(series, curves.since_step - 1) + 1
                page = await self._metrics.page(job_id, series, since, POINTS_PER_PAGE)
                for point in page:
                    seen[series] = point.step
                    yield point

    async def _series(self, job_id: str, curves: Curves) -> list[str]:
        names = await self._metrics.series(job_id)
        return [name for name in names if not curves.series or name in curves.series]

    async def _has_ended(self, training: Training) -> bool:
        # By our own table alone: the service of models may be away while somebody watches.
        now = await self._trainings.find(training.model_uid, training.name)
        return now is None or now.uid != training.uid or now.status.is_final
