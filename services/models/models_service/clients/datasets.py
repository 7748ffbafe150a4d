"""The datasets service behind `ports.Datasets`."""

from __future__ import annotations

from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError, invalid


class DatasetsClient:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def require(self, name: str, field: str) -> None:
        """Asked with the caller's own rights, so another user's dataset is a 403."""
        stub = self._channels.stub("datasets", datasets_pb2_grpc.DatasetServiceStub)
        try:
            await call_peer(lambda: stub.GetDataset(datasets_pb2.GetDatasetRequest(name=name)))
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                raise invalid(field, name, "the name of a dataset (GET /datasets lists them)") from error
            raise
