"""The scheduling service behind `ports.InstanceGroups`."""

from __future__ import annotations

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError, renamed
from servicekit.identity import Identity, acting_as

from models_service.usecases.ports import InstanceGroup


class InstanceGroupsClient:
    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def find(self, name_or_id: str, field: str) -> InstanceGroup:
        """The scheduling service's refusal lists the known groups; the field that named one is put in its place."""
        stub = self._channels.stub("scheduling", jobs_pb2_grpc.JobServiceStub)
        request = jobs_pb2.GetInstanceGroupRequest(name_or_id=name_or_id)
        try:
            # The job service speaks with services only; which groups exist is no secret.
            with acting_as(Identity.service("models")):
                response = await call_peer(lambda: stub.GetInstanceGroup(request))
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            raise renamed(error, field) from error
        return InstanceGroup(id=response.instance_group.id, name=response.instance_group.name)
