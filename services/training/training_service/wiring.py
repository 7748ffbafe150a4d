"""What is made of what."""

from __future__ import annotations

import functools

from dlmesh.training.v1 import metrics_pb2_grpc, training_pb2_grpc, trials_pb2_grpc
from servicekit.channels import LOOP_PATIENCE_SECONDS, Channels
from servicekit.database import Database
from servicekit.job_client import JobsClient
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from servicekit.weight_paths import WeightPaths

from training_service.api.servicers import MetricServicer, TrainingServicer, ValidationServicer
from training_service.clients.catalog import DatasetsClient, ModelsClient
from training_service.domain.runs import Validation
from training_service.settings import TrainingSettings
from training_service.storage import MIGRATIONS
from training_service.storage.metric_spool import DiskMetricSpool
from training_service.storage.metrics import SqlMetrics
from training_service.storage.removals import SqlRemovals
from training_service.storage.runs import SqlTrainings, SqlValidations
from training_service.storage.workspace import DiskWorkspace
from training_service.usecases.metrics import CollectMetrics, ReadMetrics, RecordMetrics
from training_service.usecases.ports import Datasets, Jobs, Models
from training_service.usecases.prepare_training import PrepareTraining
from training_service.usecases.reconcile import FollowJobs, RemoveOrphans
from training_service.usecases.removals import RemoveRuns
from training_service.usecases.runs import ModelRuns, ModelTrainings
from training_service.usecases.start_training import StartTraining
from training_service.usecases.start_validation import StartValidation
from training_service.usecases.submit_runs import SubmitRuns
from training_service.wiring_trials import build_trials

ORPHANS_LATER_SECONDS = 15.0
REMOVALS_LATER_SECONDS = 2.0


def build(
    settings: ServiceSettings,
    *,
    limits: TrainingSettings | None = None,
    models: Models | None = None,
    datasets: Datasets | None = None,
    jobs: Jobs | None = None,
) -> Application:
    """The service on `settings`; a peer that is given is used instead of the real one."""
    database = Database(settings.database_url, "training")
    channels = Channels(settings)
    models = models or ModelsClient(channels)
    datasets = datasets or DatasetsClient(channels)
    jobs = jobs or JobsClient(channels, "training", delete_patience_seconds=LOOP_PATIENCE_SECONDS)
    workspace = DiskWorkspace(settings.home)
    weights = WeightPaths(settings.home, settings.data_roots)
    trainings, validations = SqlTrainings(database, weights.training_of), SqlValidations(database)

    limits = limits or TrainingSettings.from_environment()
    metrics = SqlMetrics(database)
    collect = CollectMetrics(metrics, DiskMetricSpool())
    submit_trainings = SubmitRuns(trainings, jobs, workspace, limits)
    follow_trainings = ReconcileLoop(
        "trainings",
        FollowJobs(trainings, jobs, workspace, limits, settle=collect, submit=submit_trainings),
    )
    follow_validations = ReconcileLoop("validations", FollowJobs(validations, jobs, workspace, limits))
    removals = ReconcileLoop(
        "removals",
        RemoveRuns(SqlRemovals(database), jobs, workspace),
        later_seconds=REMOVALS_LATER_SECONDS,
    )
    model_trainings = ModelTrainings(
        trainings, models, workspace, wake=follow_trainings.wake, wake_removals=removals.wake
    )
    model_validations = ModelRuns[Validation](
        "validation", validations, models, wake=follow_validations.wake, wake_removals=removals.wake
    )
    read_metrics = ReadMetrics(metrics, trainings, model_trainings)
    remove_orphans = functools.partial(
        RemoveOrphans, models=models, grace_seconds=limits.orphan_grace_seconds, wake_removals=removals.wake
    )
    orphans = [
        ReconcileLoop(f"orphaned {kind}", step, later_seconds=ORPHANS_LATER_SECONDS)
        for kind, step in (
            ("validations", remove_orphans(validations)),
            ("trainings", remove_orphans(trainings)),
        )
    ]
    prepare_training = PrepareTraining(
        trainings, models, datasets, jobs, weights, max_silent_seconds=limits.max_silent_seconds
    )
    start_training = StartTraining(trainings, models, prepare_training, follow_trainings.wake)
    trials = build_trials(
        database,
        models,
        weights,
        workspace,
        metrics,
        jobs,
        prepare_training,
        submit_trainings,
        follow_trainings.wake,
        removals.wake,
    )
    start_validation = StartValidation(validations, trainings, models, workspace, follow_validations.wake)
    package = "dlmesh.training.v1"
    return Application(
        name="training",
        servicers=[
            (
                training_pb2_grpc.add_TrainingServiceServicer_to_server,
                TrainingServicer(start_training, model_trainings, read_metrics, workspace.path_of),
                f"{package}.TrainingService",
            ),
            (
                training_pb2_grpc.add_ValidationServiceServicer_to_server,
                ValidationServicer(start_validation, model_validations),
                f"{package}.ValidationService",
            ),
            (
                metrics_pb2_grpc.add_MetricServiceServicer_to_server,
                MetricServicer(RecordMetrics(metrics)),
                f"{package}.MetricService",
            ),
            (
                trials_pb2_grpc.add_TrainingTrialServiceServicer_to_server,
                trials.servicer,
                f"{package}.TrainingTrialService",
            ),
        ],
        loops=[follow_trainings, follow_validations, removals, trials.loop, *orphans],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
        settings={"": limits},
    )
