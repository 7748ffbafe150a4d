"""Asking the services what they were started with."""

from __future__ import annotations

from collections.abc import Mapping

from dlmesh.settings.v1 import settings_pb2, settings_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError

# A service that restarts is back within seconds.
PATIENCE_SECONDS = 10.0


class GrpcSettings:
    """Implements `usecases.ports.SettingsSource` over the kept channels to the peers."""

    def __init__(self, channels: Channels, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._channels = channels
        self._patience_seconds = patience_seconds

    async def settings_of(self, service: str) -> Mapping[str, str]:
        stub = self._channels.stub(service, settings_pb2_grpc.SettingsServiceStub)
        try:
            answer = await call_peer(
                lambda: stub.GetSettings(settings_pb2.GetSettingsRequest()), patience_seconds=self._patience_seconds
            )
        except ServiceError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            message = f"the {service} service does not answer; GET /healthz shows how all of them are"
            raise ServiceError(error.code, error.reason, message, {"service": service}) from error
        return dict(answer.settings)
