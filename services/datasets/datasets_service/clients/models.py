"""The models service behind `ports.Models`."""

from __future__ import annotations

from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.identity import Identity, acting_as


class ModelsClient:
    """Asked as the service itself: another user's model keeps a dataset, too."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("models", models_pb2_grpc.ModelServiceStub)

    async def naming(self, dataset: str) -> list[str]:
        async def names() -> list[str]:
            request = models_pb2.ListModelsRequest(dataset=dataset)
            return [model.name async for model in self._stub.ListModels(request)]

        with acting_as(Identity.service("datasets")):
            return await call_peer(names)
