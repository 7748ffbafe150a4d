"""What is made of what."""

from __future__ import annotations

import functools

from dlmesh.training.v1 import metrics_pb2_grpc, training_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.job_client import JobsClient
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings

from training_service.api.servicers import MetricServicer, TrainingServicer, ValidationServicer
from training_service.clients.catalog import DatasetsClient, ModelsClient
from training_service.domain.runs import Validation
from training_service.settings import TrainingSettings
from training_service.storage import MIGRATIONS
from training_service.storage.initial_weights import DiskInitialWeights
from training_service.storage.metric_spool import DiskMetricSpool
from training_service.storage.metrics import SqlMetrics
from training_service.storage.runs import SqlTrainings, SqlValidations
from training_service.storage.workspace import DiskWorkspace
from training_service.usecases.metrics import CollectMetrics, RecordMetrics
from training_service.usecases.ports import Datasets, Jobs, Models
from training_service.usecases.reconcile import FollowJobs, RemoveOrphans
from training_service.usecases.runs import ModelRuns, ModelTrainings
from training_service.usecases.start_training import StartTraining
from training_service.usecases.start_validation import StartValidation

ORPHANS_IDLE_SECONDS = 15.0


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
    jobs = jobs or JobsClient(channels, "training")
    workspace = DiskWorkspace(settings.home)
    trainings, validations = SqlTrainings(database), SqlValidations(database)

    limits = limits or TrainingSettings.from_environment()
    metrics = SqlMetrics(database)
    collect = CollectMetrics(metrics, DiskMetricSpool())
    follow_trainings = ReconcileLoop(
        # Trainings are long, and every look takes time from the ranks on this machine.
        "trainings",
        FollowJobs(trainings, jobs, workspace, limits, settle=collect),
        idle_seconds=0.5,
    )
    follow_validations = ReconcileLoop("validations", FollowJobs(validations, jobs, workspace, limits))
    model_trainings = ModelTrainings(trainings, validations, models, jobs, workspace, follow_trainings.wake)
    model_validations = ModelRuns[Validation](
        "validation", validations, models, jobs, workspace, follow_validations.wake
    )
    orphans = [
        ReconcileLoop(f"orphaned {kind}", step, idle_seconds=ORPHANS_IDLE_SECONDS)
        for kind, step in (
            ("validations", RemoveOrphans(validations, models, model_validations)),
            ("trainings", RemoveOrphans(trainings, models, model_trainings)),
        )
    ]
    weights = DiskInitialWeights(settings.home, settings.data_roots)
    start_training = StartTraining(
        trainings,
        models,
        datasets,
        jobs,
        weights,
        follow_trainings.wake,
        max_silent_seconds=limits.max_silent_seconds,
    )
    start_validation = StartValidation(validations, trainings, models, follow_validations.wake)
    package = "dlmesh.training.v1"
    return Application(
        name="training",
        servicers=[
            (
                training_pb2_grpc.add_TrainingServiceServicer_to_server,
                TrainingServicer(start_training, model_trainings, workspace.path_of),
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
        ],
        loops=[follow_trainings, follow_validations, *orphans],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
    )
