"""InstanceGroupService: administration of instance groups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from dlmesh.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from servicekit.identity import current_identity

from scheduling_service.api.application_mapping import (
    group_to_settings,
    settings_from_proto,
    share_from_proto,
    share_to_proto,
)
from scheduling_service.usecases.instance_groups import InstanceGroups


class InstanceGroupServicer(scheduling_pb2_grpc.InstanceGroupServiceServicer):
    """Translates; see scheduling.proto for what each call promises."""

    def __init__(self, groups: InstanceGroups) -> None:
        self._groups = groups

    async def CreateInstanceGroup(
        self, request: scheduling_pb2.CreateInstanceGroupRequest, context: Any
    ) -> scheduling_pb2.InstanceGroupSettings:
        return group_to_settings(await self._groups.create(current_identity(), settings_from_proto(request.group)))

    async def ListInstanceGroupSettings(
        self, request: scheduling_pb2.ListInstanceGroupSettingsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.InstanceGroupSettings]:
        for group in await self._groups.list():
            yield group_to_settings(group)

    async def GetInstanceGroupSettings(
        self, request: scheduling_pb2.GetInstanceGroupSettingsRequest, context: Any
    ) -> scheduling_pb2.InstanceGroupSettings:
        return group_to_settings(await self._groups.get(request.name))

    async def UpdateInstanceGroup(
        self, request: scheduling_pb2.UpdateInstanceGroupRequest, context: Any
    ) -> scheduling_pb2.InstanceGroupSettings:
        settings = settings_from_proto(request.group)
        return group_to_settings(await self._groups.update(current_identity(), request.name, settings))

    async def DeleteInstanceGroup(self, request: scheduling_pb2.DeleteInstanceGroupRequest, context: Any) -> Empty:
        await self._groups.delete(current_identity(), request.name)
        return Empty()

    async def StartInstanceGroup(self, request: scheduling_pb2.StartInstanceGroupRequest, context: Any) -> Empty:
        await self._groups.set_started(current_identity(), request.name, True)
        return Empty()

    async def StopInstanceGroup(self, request: scheduling_pb2.StopInstanceGroupRequest, context: Any) -> Empty:
        await self._groups.set_started(current_identity(), request.name, False)
        return Empty()

    async def SetUserShare(self, request: scheduling_pb2.SetUserShareRequest, context: Any) -> scheduling_pb2.UserShare:
        share = share_from_proto(request.user, request.share)
        await self._groups.set_share(current_identity(), request.name, share)
        return share_to_proto(share)

    async def ListUserShares(
        self, request: scheduling_pb2.ListUserSharesRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.UserShare]:
        for share in await self._groups.shares(request.name):
            yield share_to_proto(share)

    async def DeleteUserShare(self, request: scheduling_pb2.DeleteUserShareRequest, context: Any) -> Empty:
        await self._groups.remove_share(current_identity(), request.name, request.user)
        return Empty()
