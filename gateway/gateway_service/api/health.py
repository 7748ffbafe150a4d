"""GET /healthz."""

from __future__ import annotations

import grpc
from dlmesh.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from servicekit.interceptor import HTTP_CODE_HEADER

from gateway_service.usecases.platform_health import SERVING, PlatformHealth


class PlatformHealthServicer(gateway_pb2_grpc.PlatformHealthServiceServicer):
    """dlmesh.gateway.v1.PlatformHealthService."""

    def __init__(self, health: PlatformHealth) -> None:
        self._health = health

    async def GetPlatformHealth(
        self, request: gateway_pb2.GetPlatformHealthRequest, context: grpc.aio.ServicerContext
    ) -> gateway_pb2.GetPlatformHealthResponse:
        """Not an error for a gRPC client: it reads the status. A REST client gets 503 with the same body."""
        all_serve, states = await self._health.check()
        if not all_serve:
            await context.send_initial_metadata(((HTTP_CODE_HEADER, "503"),))
        return gateway_pb2.GetPlatformHealthResponse(status=SERVING if all_serve else "NOT_SERVING", services=states)
