"""What is made of what."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

from dlmesh.inference.v1 import inference_pb2_grpc, serving_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.job_client import JobsClient
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings

from inference_service.api.servicers import InferenceServicer, UploadLimits
from inference_service.api.serving import AdmissionServicer, ServedModelServicer
from inference_service.clients.peers import CatalogClient, TrainingsClient
from inference_service.clients.triton import NoTriton, Processes, TritonClient
from inference_service.kernels.settings import KernelModelSettings
from inference_service.kernels.wiring import KernelPools, build_kernels
from inference_service.settings import TritonSettings
from inference_service.storage import MIGRATIONS
from inference_service.storage.inputs import DiskInputs
from inference_service.storage.model_rows import SqlInferenceModels
from inference_service.storage.repository import DiskRepository
from inference_service.storage.rows import SqlPredictions
from inference_service.storage.workspace import DiskWorkspace
from inference_service.triton.addresses import address_file, read_grpc_address, write_addresses
from inference_service.triton.memory import ModelMemory
from inference_service.triton.server import TritonServer
from inference_service.usecases.add_version import AddVersion
from inference_service.usecases.admit_inference import AdmitInference
from inference_service.usecases.create_model import CreateInferenceModel
from inference_service.usecases.export_models import ExportModels
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.follow_predictions import FollowPredictions
from inference_service.usecases.ports import Catalog, Jobs, ModelServer, Trainings
from inference_service.usecases.predictions import PredictionQueries
from inference_service.usecases.remove_models import RemoveDeleted
from inference_service.usecases.residency import MemoryLimits, Residency
from inference_service.usecases.serve_models import ServeModels
from inference_service.usecases.served_models import ServedModelQueries
from inference_service.usecases.start_prediction import StartPrediction
from inference_service.usecases.version_traffic import VersionTraffic

REMOVALS_LATER_SECONDS = 5.0
MEMORY_LATER_SECONDS = 2.0


def build(
    settings: ServiceSettings,
    triton: TritonSettings | None = None,
    *,
    catalog: Catalog | None = None,
    trainings: Trainings | None = None,
    jobs: Jobs | None = None,
    server: ModelServer | None = None,
    kernels: KernelModelSettings | None = None,
    pools: KernelPools | None = None,
) -> Application:
    """The service on `settings`; a peer, a model server or pools that are given are used instead of the real ones."""
    triton = triton or TritonSettings.from_environment()
    kernels = kernels or KernelModelSettings.from_environment()
    database = Database(settings.database_url, "inference")
    channels = Channels(settings)
    catalog = catalog or CatalogClient(channels)
    trainings = trainings or TrainingsClient(channels)
    jobs = jobs or JobsClient(channels, "inference")
    repository = DiskRepository(settings.home)
    workspace = DiskWorkspace(settings.home, settings.data_roots, triton.max_image_bytes)
    inputs = DiskInputs(settings.data_roots)
    models, predictions = SqlInferenceModels(database), SqlPredictions(database)

    loops: list[ReconcileLoop] = []
    shutdown: list[Callable[[], Awaitable[None]]] = []
    if server is None:
        server = _model_server(settings.home, triton, loops, shutdown, lambda: residency.forget())
    fail = FailVersion(models, catalog)
    limits = MemoryLimits(triton.model_idle_seconds, triton.max_loaded_models)
    residency = Residency(models, repository, server, fail, limits, lambda: _wake(serve, follow))
    serve_models = ServeModels(models, predictions, server, residency)
    shutdown[:0] = [serve_models.health.close, residency.close]
    serve = ReconcileLoop("models", serve_models)
    export_models = ExportModels(models, catalog, repository, fail, serve.wake)
    shutdown.insert(0, export_models.close)
    export = ReconcileLoop("exports", export_models)
    follow = ReconcileLoop("predictions", FollowPredictions(predictions, models, jobs, workspace, residency.lacks))
    remove_deleted = RemoveDeleted(models, predictions, catalog, repository, residency, workspace)
    remove = ReconcileLoop("removals", remove_deleted, later_seconds=REMOVALS_LATER_SECONDS)
    served = ServedModelQueries(models, residency)
    serving = ServedModelServicer(
        served,
        AddVersion(models, catalog, trainings, repository, server, export.wake),
        VersionTraffic(models, predictions, serve.wake),
    )
    servicer = InferenceServicer(
        CreateInferenceModel(
            models, catalog, trainings, repository, server, remove_deleted.remove_if_deleted, export.wake
        ),
        StartPrediction(
            predictions,
            models,
            jobs,
            server,
            workspace,
            inputs,
            lambda: _wake(serve, follow),
            triton.max_active_predictions,
        ),
        PredictionQueries(predictions, models, catalog, jobs, workspace, follow.wake),
        workspace.folder,
        UploadLimits(triton.max_image_bytes, triton.max_upload_bytes, triton.max_upload_files),
    )
    kernel_parts = build_kernels(settings, database, kernels, pools)
    return Application(
        name="inference",
        servicers=[
            (
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                servicer,
                "dlmesh.inference.v1.InferenceService",
            ),
            (
                serving_pb2_grpc.add_ServedModelServiceServicer_to_server,
                serving,
                "dlmesh.inference.v1.ServedModelService",
            ),
            (
                serving_pb2_grpc.add_AdmissionServiceServicer_to_server,
                AdmissionServicer(AdmitInference(models, residency)),
                "dlmesh.inference.v1.AdmissionService",
            ),
            *kernel_parts.servicers,
        ],
        loops=[*loops, export, serve, follow, remove, *kernel_parts.loops],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
        shutdown=[*kernel_parts.shutdown, *shutdown],
        settings={"triton": triton, "kernels": kernels},
    )


def _wake(*loops: ReconcileLoop) -> None:
    for loop in loops:
        loop.wake()


def _model_server(
    home: Path,
    triton: TritonSettings,
    loops: list[ReconcileLoop],
    shutdown: list[Callable[[], Awaitable[None]]],
    on_start: Callable[[], None],
) -> ModelServer:
    """A client of the Triton that the settings name; one of our own is kept by a loop and ended at shutdown."""
    addresses = address_file(home)
    processes: Processes | None = None
    why_ended: Callable[[str], str] | None = None
    key = ""
    if triton.url:
        write_addresses(addresses, {"http": triton.url, "grpc": triton.grpc})
    elif not triton.enabled or triton.installation is None:
        # The gateway goes by it.
        addresses.unlink(missing_ok=True)
        return NoTriton(
            "Triton is not installed: run make setup" if triton.enabled else "Triton is switched off (DLMESH_TRITON=0)"
        )
    else:
        child = TritonServer(triton.installation, home, on_start)
        loops.append(ReconcileLoop("triton", child.step, later_seconds=0.25))
        shutdown.append(child.stop)
        if triton.model_memory_bytes:
            memory = ModelMemory(child.model_processes, triton.model_memory_bytes)
            why_ended = memory.why_ended
            loops.append(ReconcileLoop("memory", memory.step, later_seconds=MEMORY_LATER_SECONDS))
        processes, key = child.model_processes, child.key
    client = TritonClient(lambda: read_grpc_address(addresses), processes, triton.model_load_seconds, key, why_ended)
    shutdown.insert(0, client.close)
    return client
