"""What is made of what for models with a kernel; the service's `wiring` puts it into the service."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dlmesh.inference.v1 import kernels_pb2_grpc
from servicekit.archives import ArchiveLimits
from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.settings import ServiceSettings

from inference_service.kernels.api.mapping import Addresses
from inference_service.kernels.api.servicer import KernelModelServicer, KernelStreamServicer
from inference_service.kernels.domain.pools import KernelPools
from inference_service.kernels.engine.limits import PoolLimits
from inference_service.kernels.engine.pools import KernelPools as ProcessPools
from inference_service.kernels.settings import KernelModelSettings
from inference_service.kernels.storage.folders import DiskKernelFolders
from inference_service.kernels.storage.rows import SqlKernelModels
from inference_service.kernels.usecases.ask_kernels import AskKernels
from inference_service.kernels.usecases.change_model import ChangeKernelModel
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.publish_model import PublishKernelModel
from inference_service.kernels.usecases.run_kernels import RemoveStrayKernels, RunKernels
from inference_service.kernels.usecases.start_stop_kernels import StartStopKernels
from inference_service.kernels.usecases.started_kernels import StartedKernels
from inference_service.kernels.usecases.stream_tasks import StreamKernelTasks

__all__ = ["KernelParts", "KernelPools", "build_kernels"]

STRAYS_LATER_SECONDS = 600.0


@dataclass(frozen=True)
class KernelParts:
    """Parts of the service, as `Application` takes them."""

    servicers: list[tuple[Any, Any, str]]
    loops: list[ReconcileLoop]
    shutdown: list[Callable[[], Awaitable[None]]]


def build_kernels(
    settings: ServiceSettings, database: Database, limits: KernelModelSettings, pools: KernelPools | None = None
) -> KernelParts:
    """Kernels run in `pools`, where they are given."""
    pools = pools or ProcessPools(
        settings.home, PoolLimits(max_kernels=limits.max_kernels, queue_tasks=limits.max_tasks)
    )
    models = SqlKernelModels(database)
    folders = DiskKernelFolders(settings.home, settings.data_roots, ArchiveLimits(size_bytes=limits.max_model_bytes))
    started = StartedKernels()
    run = ReconcileLoop("kernels", RunKernels(models, folders, pools, started, limits.execution_user))
    strays = ReconcileLoop("stray-kernels", RemoveStrayKernels(models, folders), later_seconds=STRAYS_LATER_SECONDS)
    queries = KernelModelQueries(models, folders, pools)
    ask = AskKernels(
        queries, started, pools, max_input_bytes=limits.max_task_bytes, patience_seconds=limits.wait_seconds
    )
    servicer = KernelModelServicer(
        PublishKernelModel(models, folders),
        ChangeKernelModel(models, folders, queries),
        queries,
        StartStopKernels(models, queries, started, run.wake),
        ask,
        Addresses(limits.public_url, limits.public_address, folders.folder("").resolve()),
        run_as=limits.execution_user or getpass.getuser(),
        max_model_bytes=limits.max_model_bytes,
    )
    return KernelParts(
        servicers=[
            (
                kernels_pb2_grpc.add_KernelModelServiceServicer_to_server,
                servicer,
                "dlmesh.inference.v1.KernelModelService",
            ),
            (
                kernels_pb2_grpc.add_KernelStreamServiceServicer_to_server,
                KernelStreamServicer(StreamKernelTasks(ask)),
                "dlmesh.inference.v1.KernelStreamService",
            ),
        ],
        loops=[run, strays],
        shutdown=[pools.close],
    )
