"""What is made of what."""

from __future__ import annotations

import functools

from dlmesh.datasets.v1 import datasets_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings

from datasets_service.api.servicer import DatasetServicer
from datasets_service.clients.models import ModelsClient
from datasets_service.clients.scheduling import JobsClient
from datasets_service.detection.records import DiskObjectImages
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.words import SourceType
from datasets_service.importers.registry import importer_for
from datasets_service.storage import MIGRATIONS
from datasets_service.storage.files import DiskFiles, DiskSources
from datasets_service.storage.repository import SqlStorage
from datasets_service.tables.records import DiskTables
from datasets_service.usecases.create_dataset import CreateDataset
from datasets_service.usecases.delete_dataset import DeleteDataset
from datasets_service.usecases.follow_imports import FollowImports
from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.list_datasets import ListDatasets
from datasets_service.usecases.list_object_images import ListObjectImages
from datasets_service.usecases.ports import Jobs, Models
from datasets_service.usecases.read_csv import ReadCsv
from datasets_service.usecases.remove_deleted import RemoveDeleted
from datasets_service.usecases.stop_dataset import StopDataset

REMOVALS_LATER_SECONDS = 2.0


def build(settings: ServiceSettings, *, jobs: Jobs | None = None, models: Models | None = None) -> Application:
    """The service on `settings`; a peer that is given is used instead of the real one."""
    database = Database(settings.database_url, "datasets")
    channels = Channels(settings)
    jobs = jobs or JobsClient(channels)
    models = models or ModelsClient(channels)
    storage = SqlStorage(database)
    files = DiskFiles(settings.home, settings.data_roots)

    imports = ReconcileLoop("imports", FollowImports(storage, jobs, files))
    removals = ReconcileLoop("removals", RemoveDeleted(storage, files, jobs), later_seconds=REMOVALS_LATER_SECONDS)
    get_dataset = GetDataset(storage)
    sources = DiskSources(settings.data_roots)

    def check(source_type: SourceType, request: DatasetRequest) -> ImportOptions:
        return importer_for(source_type).check(request, sources)

    servicer = DatasetServicer(
        create=CreateDataset(storage, check, jobs, imports.wake),
        get=get_dataset,
        list_visible=ListDatasets(storage),
        stop=StopDataset(storage, get_dataset, imports.wake),
        delete=DeleteDataset(storage, get_dataset, models, removals.wake),
        read_csv=ReadCsv(get_dataset, DiskTables()),
        list_object_images=ListObjectImages(get_dataset, DiskObjectImages()),
    )
    return Application(
        name="datasets",
        servicers=[
            (
                datasets_pb2_grpc.add_DatasetServiceServicer_to_server,
                servicer,
                "dlmesh.datasets.v1.DatasetService",
            )
        ],
        loops=[imports, removals],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
    )
