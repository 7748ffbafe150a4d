"""What studies ask of trials once they are started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.trials import check_id, check_ids
from workerkit.trial_results import TrialResults

from training_service.domain.metrics import MetricPoint
from training_service.domain.runs import Training
from training_service.usecases.metrics import ThinnedCurves
from training_service.usecases.ports import Jobs, Metrics, Models, Trials, Workspace

MAX_POINTS = 100
# Programs may report any number of series.
MAX_SERIES = 100
MAX_WAIT_SECONDS = 10.0
MAX_POLL_SECONDS = 0.2
# Of one answer; a message has 64 MiB at most. A point is a step and a value.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# After so long what is left has to be asked for again: callers wait only so long for one answer.
READ_SECONDS = 5.0
ENDED_JOBS = ("FINISHED", "ERROR", "KILLED")
POINT_BYTES, CURVE_BYTES = 18, 256


@dataclass(frozen=True)
class CurvesOfTrials:
    """Which curves are asked for; see ReadTrialMetricsRequest."""

    series: Sequence[str] = ()
    only_these: bool = False
    wait_seconds: float = 0.0
    with_results: bool = False


@dataclass(frozen=True)
class TrialCurves:
    """A trial as it stands, its curves by series, and what its program wrote as results if that was asked for."""

    training: Training
    curves: Mapping[str, Sequence[MetricPoint]]
    results: TrialResults


@dataclass(frozen=True)
class FoundCurves:
    """In the order asked for; there was no room or no time for the `unread`."""

    trials: Sequence[TrialCurves]
    unread: Sequence[str]


class ReadTrialMetrics:
    """Callable with ids of trials and what is asked for; unknown ids are left out.

    A trial whose status is final has been settled: its curves change no more. `wake` has the loop settle what it can.
    """

    def __init__(
        self, trials: Trials, metrics: Metrics, workspace: Workspace, jobs: Jobs, wake: Callable[[], None]
    ) -> None:
        self._trials, self._metrics, self._workspace = trials, metrics, workspace
        self._jobs, self._wake = jobs, wake
        self._thinned = ThinnedCurves(metrics)

    async def __call__(self, trial_ids: Sequence[str], asked: CurvesOfTrials) -> FoundCurves:
        check_ids("trial_id", trial_ids)
        if not 0 <= asked.wait_seconds <= MAX_WAIT_SECONDS:
            raise invalid("wait_seconds", asked.wait_seconds, f"0 to {MAX_WAIT_SECONDS:g}")
        wanted = list(dict.fromkeys(trial_ids))
        # The state first: what a settled trial reported is all there then.
        known = await self._settled(wanted, asked.wait_seconds)
        wanted = [trial_id for trial_id in wanted if trial_id in known]
        found: list[TrialCurves] = []
        room, deadline = MAX_ANSWER_BYTES, time.monotonic() + READ_SECONDS
        for trial_id in wanted:
            if room <= 0 or (found and time.monotonic() >= deadline):
                break
            training, results = known[trial_id], TrialResults()
            curves = await self._curves(training.job_id, asked)
            if asked.with_results:
                results = await asyncio.to_thread(self._workspace.results, training)
            room -= CURVE_BYTES + sum(CURVE_BYTES + POINT_BYTES * len(points) for points in curves.values())
            room -= len(results.text.encode())
            found.append(TrialCurves(training, curves, results))
        return FoundCurves(found, wanted[len(found) :])

    async def _settled(self, trial_ids: Sequence[str], seconds: float) -> Mapping[str, Training]:
        deadline, pause = time.monotonic() + seconds, 0.01
        known = dict(await self._trials.known(trial_ids))
        ended = await self._ended([trial for trial in known.values() if not trial.status.is_final]) if seconds else []
        while ended and time.monotonic() < deadline:
            self._wake()
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_POLL_SECONDS)
            now = await self._trials.known(ended)
            for uid in ended:
                # One that was deleted meanwhile is unknown.
                known.pop(uid)
            known |= now
            ended = [uid for uid, trial in now.items() if not trial.status.is_final]
        return known

    async def _ended(self, trials: Sequence[Training]) -> list[str]:
        """Those of the trials whose jobs have ended."""
        if not trials:
            return []
        try:
            jobs = await self._jobs.get([trial.job_id for trial in trials])
        except ServiceError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            # Nothing can be settled now.
            return []
        return [trial.uid for trial in trials if trial.job_id in jobs and jobs[trial.job_id].state in ENDED_JOBS]

    async def _curves(self, job_id: str, asked: CurvesOfTrials) -> dict[str, Sequence[MetricPoint]]:
        chosen = list(dict.fromkeys(asked.series))
        if not asked.only_these:
            names = await self._metrics.series(job_id)
            chosen = [name for name in chosen if name in names]
            others = [name for name in names if name not in chosen]
            chosen += others[: max(0, MAX_SERIES - len(chosen))]
        curves = {name: await self._thinned(job_id, name, 0, MAX_POINTS) for name in chosen}
        # An attempt may have been discarded with all that it reported.
        return {name: points for name, points in curves.items() if points}


class GetTrial:
    """Callable with an id; 404."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials

    async def __call__(self, trial_id: str) -> Training:
        check_id("trial_id", trial_id)
        training = (await self._trials.known([trial_id])).get(trial_id)
        if training is None:
            raise not_found("trial", trial_id)
        return training


class ListActiveTrials:
    """Callable with a model's name; 404 and 403 as for the model."""

    def __init__(self, trials: Trials, models: Models) -> None:
        self._trials, self._models = trials, models

    async def __call__(self, model_name: str) -> Sequence[Training]:
        model = await self._models.get(model_name)
        return await self._trials.active_of_model(model.uid)
