"""Accounts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from dlmesh.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from google.protobuf import empty_pb2
from servicekit.identity import current_identity
from servicekit.times import format_time

from gateway_service.usecases.manage_users import Users


class UserServicer(gateway_pb2_grpc.UserServiceServicer):
    """dlmesh.gateway.v1.UserService."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def CreateUser(
        self, request: gateway_pb2.CreateUserRequest, context: grpc.aio.ServicerContext
    ) -> empty_pb2.Empty:
        await self._users.create_user(current_identity(), request.name, request.password, request.role)
        return empty_pb2.Empty()

    async def ListUsers(
        self, request: gateway_pb2.ListUsersRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[gateway_pb2.UserDetail]:
        for user in await self._users.list_users(current_identity()):
            yield gateway_pb2.UserDetail(name=user.name, role=user.role.value, created_at=format_time(user.created_at))

    async def DeleteUser(
        self, request: gateway_pb2.DeleteUserRequest, context: grpc.aio.ServicerContext
    ) -> empty_pb2.Empty:
        await self._users.delete_user(current_identity(), request.name)
        return empty_pb2.Empty()

    async def SetPassword(
        self, request: gateway_pb2.SetPasswordRequest, context: grpc.aio.ServicerContext
    ) -> empty_pb2.Empty:
        await self._users.set_password(current_identity(), request.name, request.password)
        return empty_pb2.Empty()
