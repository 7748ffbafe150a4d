"""Asking the services over grpc.health.v1."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicekit.channels import Channels
from servicekit.settings import ServiceSettings

PROBE_TIMEOUT_SECONDS = 1.0


class GrpcHealthProbe:
    """Implements `usecases.ports.HealthProbe` over the kept channels to the peers."""

    def __init__(self, settings: ServiceSettings, channels: Channels) -> None:
        self._names = tuple(settings.peers)
        self._channels = channels

    async def probe(self) -> Mapping[str, str]:
        states = await asyncio.gather(*(self._state(name) for name in self._names))
        return dict(zip(self._names, states, strict=True))

    async def _state(self, name: str) -> str:
        stub = self._channels.stub(name, health_pb2_grpc.HealthStub)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            return "UNREACHABLE" if error.code() is grpc.StatusCode.UNAVAILABLE else error.code().name
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
