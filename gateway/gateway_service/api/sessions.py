"""Logon."""

from __future__ import annotations

import grpc
from dlmesh.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from servicekit.identity import current_identity

from gateway_service.domain.credentials import SESSION_COOKIE
from gateway_service.usecases.log_on import Sessions


class SessionServicer(gateway_pb2_grpc.SessionServiceServicer):
    """dlmesh.gateway.v1.SessionService."""

    def __init__(self, sessions: Sessions, session_seconds: float) -> None:
        self._sessions = sessions
        self._session_seconds = session_seconds

    async def Logon(
        self, request: gateway_pb2.LogonRequest, context: grpc.aio.ServicerContext
    ) -> gateway_pb2.LogonResponse:
        issued = await self._sessions.log_on(current_identity().user)
        cookie = (
            f"{SESSION_COOKIE}={issued.token}; Path=/; Max-Age={self._session_seconds:.0f}; HttpOnly; SameSite=Strict"
        )
        await context.send_initial_metadata((("set-cookie", cookie), ("cache-control", "no-store")))
        return gateway_pb2.LogonResponse(csrf_token=issued.csrf_token)
