"""GET /conf."""

from __future__ import annotations

import grpc
from dlmesh.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from google.protobuf import struct_pb2

from gateway_service.usecases.configuration import Configuration


class ConfigurationServicer(gateway_pb2_grpc.ConfigurationServiceServicer):
    """dlmesh.gateway.v1.ConfigurationService."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    async def GetConfiguration(
        self, request: gateway_pb2.GetConfigurationRequest, context: grpc.aio.ServicerContext
    ) -> struct_pb2.Struct:
        properties = struct_pb2.Struct()
        properties.update(await self._configuration())
        return properties
