"""SchedulerService: what REST clients see of the queue."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator
from typing import Any

from dlmesh.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from servicekit.errors import invalid, not_found
from servicekit.identity import current_identity

from scheduling_service.api.application_mapping import FACTS, application_to_proto, group_to_detail
from scheduling_service.api.chosen_fields import chosen_fields, only, words
from scheduling_service.api.log_pieces import log_pieces
from scheduling_service.domain.attempt_facts import ProcessFacts
from scheduling_service.domain.job import Job
from scheduling_service.usecases.find_application import FindApplication
from scheduling_service.usecases.list_applications import ListApplications, sort_order, states
from scheduling_service.usecases.ports import Engines, Groups, Query, RunDirectories

STREAMS = ("stdout", "stderr")


class SchedulerServicer(scheduling_pb2_grpc.SchedulerServiceServicer):
    """Translates; see scheduling.proto for what each call promises."""

    def __init__(
        self,
        list_applications: ListApplications,
        find_application: FindApplication,
        groups: Groups,
        engines: Engines,
        directories: RunDirectories,
    ) -> None:
        self._list_applications, self._find_application = list_applications, find_application
        self._groups, self._engines, self._directories = groups, engines, directories

    async def ListInstanceGroups(
        self, request: scheduling_pb2.ListInstanceGroupsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.InstanceGroupDetail]:
        fields = chosen_fields(request.fields, scheduling_pb2.InstanceGroupDetail)
        for group in await self._groups.all():
            version = self._engines.version(group.engine)
            yield only(group_to_detail(group, getpass.getuser(), version), fields)

    async def ListApplications(
        self, request: scheduling_pb2.ListApplicationsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.ApplicationDetail]:
        sort, descending = sort_order(request.sort, request.order)
        query = Query(
            application_ids=words(request.application_id),
            driver_id=request.driver_id,
            name=request.application_name,
            search=request.search,
            states=states(words(request.state)),
            group_id=(await self._groups.get(request.sig_id)).id if request.sig_id else None,
            sort=sort,
            descending=descending,
            start=request.start,
            length=request.length if request.HasField("length") else None,
        )
        async for detail in self._applications(query, request.fields):
            yield detail

    async def ListGroupApplications(
        self, request: scheduling_pb2.ListGroupApplicationsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.ApplicationDetail]:
        group = await self._groups.find(request.group)
        query = Query(states=states(words(request.state)), group_id=group.id)
        async for detail in self._applications(query, request.fields):
            yield detail

    async def DownloadDriverLog(
        self, request: scheduling_pb2.DownloadDriverLogRequest, context: Any
    ) -> AsyncIterator[HttpBody]:
        job, facts = await self._find_application(current_identity(), request.group, request.driver_id)
        async for piece in self._log(job, facts.driver if facts else None, request.stream, request.tail_lines):
            yield piece

    async def DownloadExecutorLog(
        self, request: scheduling_pb2.DownloadExecutorLogRequest, context: Any
    ) -> AsyncIterator[HttpBody]:
        job, facts = await self._find_application(current_identity(), request.group, request.driver_id)
        executors = {each.id: each for each in facts.executors} if facts else {}
        if request.executor_id not in executors:
            raise not_found("executor", request.executor_id)
        async for piece in self._log(job, executors[request.executor_id], request.stream, request.tail_lines):
            yield piece

    async def _applications(self, query: Query, fields: str) -> AsyncIterator[scheduling_pb2.ApplicationDetail]:
        names = chosen_fields(fields, scheduling_pb2.ApplicationDetail)
        user = getpass.getuser()
        with_facts = not FACTS.isdisjoint(names)
        async for application in self._list_applications(current_identity(), query, with_facts=with_facts):
            yield only(application_to_proto(application, user), names)

    async def _log(
        self, job: Job, process: ProcessFacts | None, stream: str, tail_lines: int
    ) -> AsyncIterator[HttpBody]:
        if stream not in STREAMS:
            raise invalid("stream", stream, STREAMS)
        path = "" if process is None else process.stdout if stream == "stdout" else process.stderr
        try:
            file = self._directories.open_output(job, path)
        except OSError:
            raise not_found("log", f"{stream} of application {job.id}") from None
        sent = False
        async for piece in log_pieces(file, tail_lines):
            sent = True
            yield HttpBody(content_type="application/octet-stream", data=piece)
        if not sent:
            # Without a message there would be no content type.
            yield HttpBody(content_type="application/octet-stream")
