"""The parts of trials, put together for `wiring`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.weight_paths import WeightPaths

from training_service.api.trial_servicer import TrainingTrialServicer
from training_service.domain.runs import Training
from training_service.storage.trials import SqlTrials
from training_service.usecases.delete_trials import DeleteTrials, RemoveDeletedTrials
from training_service.usecases.ports import Jobs, Metrics, Models, Workspace
from training_service.usecases.prepare_training import PrepareTraining
from training_service.usecases.prepare_trial import PrepareTrial
from training_service.usecases.read_trials import GetTrial, ListActiveTrials, ReadTrialMetrics
from training_service.usecases.start_trial import CheckTrial, StartTrial
from training_service.usecases.submit_runs import SubmitRuns


@dataclass(frozen=True)
class BuiltTrials:
    """What `build_trials` made."""

    servicer: TrainingTrialServicer
    loop: ReconcileLoop


def build_trials(
    database: Database,
    models: Models,
    weights: WeightPaths,
    workspace: Workspace,
    metrics: Metrics,
    jobs: Jobs,
    prepare: PrepareTraining,
    submit: SubmitRuns[Training],
    wake: Callable[[], None],
    wake_removals: Callable[[], None],
) -> BuiltTrials:
    """TrainingTrialService and its loop; `wake` wakes the loop that follows trainings."""
    trials = SqlTrials(database, weights.training_of)
    prepare_trial = PrepareTrial(models, prepare)
    loop = ReconcileLoop("deleted trials", RemoveDeletedTrials(trials, wake_removals))

    def wake_both() -> None:
        wake()
        loop.wake()

    servicer = TrainingTrialServicer(
        CheckTrial(prepare_trial),
        StartTrial(trials, prepare_trial, submit, wake),
        ReadTrialMetrics(trials, metrics, workspace, jobs, wake),
        GetTrial(trials),
        DeleteTrials(trials, wake_both),
        ListActiveTrials(trials, models),
    )
    return BuiltTrials(servicer, loop)
