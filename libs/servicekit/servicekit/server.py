"""A gRPC service process: interceptors, health, reflection, loops, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import uvloop
from dlmesh.settings.v1 import settings_pb2, settings_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from servicekit.channels import METADATA_OPTIONS, Channels
from servicekit.database import Database
from servicekit.identity import current_identity
from servicekit.interceptor import ContractInterceptor, audit
from servicekit.reconcile import ReconcileLoop
from servicekit.settings import ServiceSettings, SettingError
from servicekit.shown_settings import shown_settings

log = logging.getLogger(__name__)

DRAIN_SECONDS = 3.0
SERVER_OPTIONS = (
    # Without it two processes could listen on one port and share the calls.
    ("grpc.so_reuseport", 0),
    *METADATA_OPTIONS,
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)

Servicer = tuple[Callable[[Any, grpc.aio.Server], None], Any, str]


@dataclass
class Application:
    """A service, wired but not started.

    `servicers` are (add_XServicer_to_server, servicer, full service name); `startup` runs before the port opens (a
    migration, say) and `shutdown` after it closed; `let_go` is called when the end begins, so that calls which wait for
    something are answered. `settings` are what the service reads beyond the common ones, by the
    name that goes before theirs in `GET /conf` ("" is none).
    """

    name: str
    servicers: Sequence[Servicer]
    loops: Sequence[ReconcileLoop] = ()
    databases: Sequence[Database] = ()
    channels: Sequence[Channels] = ()
    startup: Sequence[Callable[[], Awaitable[None]]] = ()
    shutdown: Sequence[Callable[[], Awaitable[None]]] = ()
    let_go: Sequence[Callable[[], None]] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, repr=False)
    _server: grpc.aio.Server | None = field(default=None, repr=False)

    async def start(self, settings: ServiceSettings) -> int:
        """Open the port and start the loops; returns the port (useful when the address asked for port 0)."""
        for prepare in self.startup:
            await prepare()
        server = grpc.aio.server(interceptors=[ContractInterceptor(settings.secret)], options=SERVER_OPTIONS)
        shown = _SettingsServicer(shown_settings({"": settings}) | shown_settings(self.settings))
        settings_pb2_grpc.add_SettingsServiceServicer_to_server(shown, server)
        names = ["dlmesh.settings.v1.SettingsService"]
        for add_to_server, servicer, full_name in self.servicers:
            add_to_server(servicer, server)
            names.append(full_name)
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME],
            server,
        )
        port = server.add_insecure_port(settings.address)
        await server.start()
        self._server = server
        self._tasks = [asyncio.create_task(loop.run(), name=f"loop:{loop.name}") for loop in self.loops]
        for name in ["", *names]:
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("%s is serving on port %d", self.name, port)
        return int(port)

    async def stop(self) -> None:
        """Finish the calls in flight (a few seconds at most), stop the loops, close what was opened."""
        for let_go in self.let_go:
            let_go()
        if self._server is not None:
            await self._server.stop(DRAIN_SECONDS)
        for loop in self.loops:
            loop.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for finish in self.shutdown:
            await finish()
        for channels in self.channels:
            await channels.close()
        for database in self.databases:
            await database.close()


class _SettingsServicer(settings_pb2_grpc.SettingsServiceServicer):
    """dlmesh.settings.v1.SettingsService: what the service was started with, by name."""

    def __init__(self, shown: Mapping[str, str]) -> None:
        self._shown = shown

    async def GetSettings(
        self, request: settings_pb2.GetSettingsRequest, context: grpc.aio.ServicerContext
    ) -> settings_pb2.GetSettingsResponse:
        current_identity().require_service()
        return settings_pb2.GetSettingsResponse(settings=self._shown)


async def serve(application: Application, settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await application.start(settings)
        await stopping.wait()
    finally:
        await application.stop()


def run_service(name: str, build: Callable[[ServiceSettings], Application]) -> None:
    """What a service's `__main__` calls: read the environment, build, serve; a setting that is wrong ends it with 2."""
    try:
        settings = ServiceSettings.from_environment(name)
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format=f"%(asctime)s %(levelname)s {name} %(name)s: %(message)s"
    )
    _keep_audit_trail(settings)
    try:
        uvloop.run(_build_and_serve(build, settings))
    except SettingError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _keep_audit_trail(settings: ServiceSettings) -> None:
    """One JSON row for every mutating call of every service goes to `log/audit.jsonl` (appended line by line)."""
    path = settings.home / "log" / "audit.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    audit.addHandler(handler)
    audit.setLevel(logging.INFO)
    audit.propagate = False


async def _build_and_serve(build: Callable[[ServiceSettings], Application], settings: ServiceSettings) -> None:
    await serve(build(settings), settings)
