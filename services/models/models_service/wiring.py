"""What is made of what."""

from __future__ import annotations

import functools
from pathlib import Path

from dlmesh.models.v1 import copies_pb2_grpc, hyperparameters_pb2_grpc, models_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.paths import DataRoots
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from servicekit.weight_paths import WeightPaths

from models_service.api.hyperparameter_servicer import HyperparameterServicer
from models_service.api.servicers import FrameworkServicer, ModelCopyServicer, ModelServicer, ModelTemplateServicer
from models_service.clients.activity import ActivityClient
from models_service.clients.datasets import DatasetsClient
from models_service.clients.scheduling import InstanceGroupsClient
from models_service.storage import MIGRATIONS
from models_service.storage.catalog import SqlCatalog
from models_service.usecases.models import Models
from models_service.usecases.ports import Activity, Datasets, InstanceGroups
from models_service.usecases.removals import Removals
from models_service.usecases.settle_hyperparameters import SettleHyperparameters
from models_service.usecases.templates import Templates
from models_service.usecases.weights import Weights

BUILT_IN_TEMPLATES = Path(__file__).parent / "builtin"


def build(
    settings: ServiceSettings,
    *,
    datasets: Datasets | None = None,
    groups: InstanceGroups | None = None,
    activity: Activity | None = None,
) -> Application:
    """The service on `settings`; a peer that is given is used instead of the real one."""
    database = Database(settings.database_url, "models")
    channels = Channels(settings)
    roots = DataRoots(settings.data_roots)
    catalog = SqlCatalog(database, settings.home)
    removals = ReconcileLoop("removals", Removals(catalog).step, later_seconds=2.0)
    templates = Templates(catalog, roots, settings.home, removals.wake)
    weight_paths = WeightPaths(settings.home, settings.data_roots)
    weights = Weights(catalog, weight_paths, settings.home, removals.wake)
    models = Models(
        catalog,
        settings.home,
        weights=weight_paths,
        datasets=datasets or DatasetsClient(channels),
        groups=groups or InstanceGroupsClient(channels),
        activity=activity or ActivityClient(channels),
        wake=removals.wake,
    )
    package = "dlmesh.models.v1"
    return Application(
        name="models",
        servicers=[
            (
                models_pb2_grpc.add_ModelServiceServicer_to_server,
                ModelServicer(models, weights),
                f"{package}.ModelService",
            ),
            (
                copies_pb2_grpc.add_ModelCopyServiceServicer_to_server,
                ModelCopyServicer(models),
                f"{package}.ModelCopyService",
            ),
            (
                models_pb2_grpc.add_ModelTemplateServiceServicer_to_server,
                ModelTemplateServicer(templates),
                f"{package}.ModelTemplateService",
            ),
            (
                models_pb2_grpc.add_FrameworkServiceServicer_to_server,
                FrameworkServicer(),
                f"{package}.FrameworkService",
            ),
            (
                hyperparameters_pb2_grpc.add_HyperparameterServiceServicer_to_server,
                HyperparameterServicer(SettleHyperparameters(catalog)),
                f"{package}.HyperparameterService",
            ),
        ],
        loops=[removals],
        databases=[database],
        channels=[channels],
        startup=[
            functools.partial(database.migrate, MIGRATIONS),
            functools.partial(templates.register_built_in, BUILT_IN_TEMPLATES),
        ],
    )
