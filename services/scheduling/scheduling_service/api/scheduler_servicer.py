"""SchedulerService and ExecService: what REST clients see of the queue."""

from __future__ import annotations

import getpass
import socket
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from dlmesh.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from servicekit.errors import not_built
from servicekit.identity import current_identity

from scheduling_service.api import mapping
from scheduling_service.usecases.list_applications import ListApplications, sort_order, states
from scheduling_service.usecases.ports import Groups, Query, RunDirectories


class SchedulerServicer(scheduling_pb2_grpc.SchedulerServiceServicer):
    """Translates; see scheduling.proto for what each call promises."""

    def __init__(self, list_applications: ListApplications, groups: Groups, directories: RunDirectories) -> None:
        self._list_applications, self._groups, self._directories = list_applications, groups, directories

    async def ListInstanceGroups(
        self, request: scheduling_pb2.ListInstanceGroupsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.InstanceGroupDetail]:
        for group in await self._groups.all():
            yield mapping.group_to_detail(group, getpass.getuser())

    async def ListApplications(
        self, request: scheduling_pb2.ListApplicationsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.ApplicationDetail]:
        sort, descending = sort_order(request.sort, request.order)
        ids = _words(request.application_id)
        if request.driver_id:
            of_driver = mapping.job_of_driver(request.driver_id)
            # A driver that is not of these applications matches nothing.
            ids = [of_driver] if not ids or of_driver in ids else [""]
        query = Query(
            ids=ids,
            name=request.application_name,
            search=request.search,
            states=states(_words(request.state)),
            group_id=(await self._groups.get(request.sig_id)).id if request.sig_id else None,
            sort=sort,
            descending=descending,
            start=request.start,
            length=request.length if request.HasField("length") else None,
        )
        groups = {group.id: group for group in await self._groups.all()}
        for job in await self._list_applications(current_identity(), query):
            attempt = self._directories.attempt(job)
            yield mapping.job_to_application(job, groups[job.group_id], socket.gethostname(), attempt)


class ExecServicer(scheduling_pb2_grpc.ExecServiceServicer):
    """Exec tasks are not built yet: every call says so."""

    async def StartExec(self, requests: Any, context: Any) -> NoReturn:
        raise not_built("starting exec tasks (POST /execs)")

    async def ListExecs(self, request: Any, context: Any) -> AsyncIterator[scheduling_pb2.ExecDetail]:
        raise not_built("listing exec tasks (GET /execs)")
        yield  # an async generator, as the method is a stream

    async def GetExec(self, request: Any, context: Any) -> NoReturn:
        raise not_built("reading an exec task (GET /execs/{execId})")

    async def ReadExecLog(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise not_built("logs of exec tasks (GET /execs/{execId}/log)")
        yield

    async def ReadExecResult(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise not_built("results of exec tasks (GET /execs/{execId}/result)")
        yield

    async def StopExec(self, request: Any, context: Any) -> NoReturn:
        raise not_built("stopping exec tasks (POST /execs/{execId}/stop)")

    async def DeleteExec(self, request: Any, context: Any) -> NoReturn:
        raise not_built("deleting exec tasks (DELETE /execs/{execId})")

    async def DeleteAllExecs(self, request: Any, context: Any) -> NoReturn:
        raise not_built("deleting exec tasks (DELETE /execs)")

    async def ListExecFrameworks(self, request: Any, context: Any) -> AsyncIterator[scheduling_pb2.ExecFramework]:
        raise not_built("framework plug-ins of exec tasks (GET /execs/frameworks)")
        yield


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]
