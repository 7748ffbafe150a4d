"""GET /conf."""

from __future__ import annotations

import grpc
from dlmesh.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from google.protobuf import struct_pb2

from gateway_service.settings import GatewaySettings
from gateway_service.usecases.configuration import effective_configuration


class ConfigurationServicer(gateway_pb2_grpc.ConfigurationServiceServicer):
    """dlmesh.gateway.v1.ConfigurationService."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings

    async def GetConfiguration(
        self, request: gateway_pb2.GetConfigurationRequest, context: grpc.aio.ServicerContext
    ) -> struct_pb2.Struct:
        properties = struct_pb2.Struct()
        properties.update(effective_configuration(self._settings))
        return properties
