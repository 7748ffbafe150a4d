"""ExecService: programs that users bring."""

from __future__ import annotations

import asyncio
import base64
import codecs
import getpass
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dlmesh.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import Int32Value
from servicekit.errors import invalid
from servicekit.files import read_blocks
from servicekit.multipart import Part, receive_multipart
from servicekit.times import format_time

from scheduling_service.api.chosen_fields import words
from scheduling_service.domain.exec_task import ExecView
from scheduling_service.usecases.delete_exec import DeleteAllExecs, DeleteExec
from scheduling_service.usecases.exec_ports import ExecFramework, UploadedFile
from scheduling_service.usecases.find_exec import FindExec, ListExecs
from scheduling_service.usecases.manage_exec_frameworks import ManageExecFrameworks
from scheduling_service.usecases.prepare_exec import ExecRequest
from scheduling_service.usecases.read_exec import LogRequest, LogType, ReadExecLog, ReadExecResult
from scheduling_service.usecases.start_exec import StartExec
from scheduling_service.usecases.stop_exec import StopExec

JSON, TEXT, BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
# Divisible by 3: base64 of the pieces is base64 of the whole.
BASE64_BLOCK_BYTES = 3 * 64 * 1024
# What a form may hold beside the file.
MAX_FORM_BYTES = 1024 * 1024

Requests = AsyncIterator[scheduling_pb2.StartExecRequest]


class ExecServicer(scheduling_pb2_grpc.ExecServiceServicer):
    """Translates; see scheduling.proto for what each call promises."""

    def __init__(
        self,
        start: StartExec,
        find: FindExec,
        list_: ListExecs,
        stop: StopExec,
        delete: DeleteExec,
        delete_all: DeleteAllExecs,
        read_log: ReadExecLog,
        read_result: ReadExecResult,
        frameworks: ManageExecFrameworks,
        *,
        max_upload_bytes: int,
    ) -> None:
        self._start, self._find, self._list, self._stop = start, find, list_, stop
        self._delete, self._delete_all = delete, delete_all
        self._read_log, self._read_result, self._frameworks = read_log, read_result, frameworks
        self._max_upload_bytes = max_upload_bytes

    async def StartExec(self, requests: Requests, context: Any) -> scheduling_pb2.ExecDetail:
        upload = MultipartUpload(requests, self._max_upload_bytes)
        first = await upload.first()
        request = ExecRequest(
            instance_group=first.instance_group,
            arguments=first.arguments,
            priority=first.priority,
            after=words(first.after),
            max_seconds=first.max_seconds,
        )
        return exec_detail(await self._start(request, upload))

    async def ListExecs(
        self, request: scheduling_pb2.ListExecsRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.ExecDetail]:
        async for view in self._list():
            yield exec_detail(view)

    async def GetExec(self, request: scheduling_pb2.GetExecRequest, context: Any) -> scheduling_pb2.ExecDetail:
        return exec_detail(await self._find(request.id))

    async def ReadExecLog(self, request: scheduling_pb2.ReadExecLogRequest, context: Any) -> AsyncIterator[HttpBody]:
        asked = LogRequest(request.id, request.log_type, request.follow, request.rank, request.tail_lines)
        pieces = await self._read_log(asked)
        if asked.log_type() is LogType.METRICS:
            async for text in _json_text(pieces):
                yield HttpBody(content_type=JSON, data=text)
            return
        # Something comes at once, so that a client that follows has its answer though nothing was printed yet.
        yield HttpBody(content_type=TEXT)
        async for data in pieces:
            yield HttpBody(content_type=TEXT, data=data)

    async def ReadExecResult(
        self, request: scheduling_pb2.ReadExecResultRequest, context: Any
    ) -> AsyncIterator[HttpBody]:
        as_json = _wants_json(request.format, context)
        path = await self._read_result(request.id)
        if as_json:
            async for text in _base64_json(path):
                yield HttpBody(content_type=JSON, data=text)
            return
        disposition = f'attachment; filename="model-{request.id}-result.zip"; size={path.stat().st_size}'
        await context.send_initial_metadata((("content-disposition", disposition),))
        async for block in read_blocks(path):
            yield HttpBody(content_type=BYTES, data=block)

    async def StopExec(self, request: scheduling_pb2.StopExecRequest, context: Any) -> Empty:
        await self._stop(request.id)
        return Empty()

    async def DeleteExec(self, request: scheduling_pb2.DeleteExecRequest, context: Any) -> Empty:
        await self._delete(request.id)
        return Empty()

    async def DeleteAllExecs(self, request: scheduling_pb2.DeleteAllExecsRequest, context: Any) -> Int32Value:
        return Int32Value(value=await self._delete_all())

    async def ListExecFrameworks(
        self, request: scheduling_pb2.ListExecFrameworksRequest, context: Any
    ) -> AsyncIterator[scheduling_pb2.ExecFramework]:
        for framework in await self._frameworks.list():
            yield framework_detail(framework)

    async def InstallExecFramework(
        self, request: scheduling_pb2.InstallExecFrameworkRequest, context: Any
    ) -> scheduling_pb2.ExecFramework:
        return framework_detail(await self._frameworks.install(request.path))

    async def RemoveExecFramework(self, request: scheduling_pb2.RemoveExecFrameworkRequest, context: Any) -> Empty:
        await self._frameworks.remove(request.name)
        return Empty()


class MultipartUpload:
    """`usecases.exec_ports.Upload` of a stream of requests, whose first message holds the query, too."""

    def __init__(self, requests: Requests, max_bytes: int) -> None:
        self._requests, self._max_bytes = requests, max_bytes
        self._first: scheduling_pb2.StartExecRequest | None = None

    async def first(self) -> scheduling_pb2.StartExecRequest:
        """The first message, empty when there is none."""
        async for request in self._requests:
            self._first = request
            return request
        return scheduling_pb2.StartExecRequest()

    async def save(self, folder: Path) -> UploadedFile | None:
        if self._first is None or not (self._first.body.content_type or self._first.body.data):
            return None
        parts = await receive_multipart(
            self._counted(), lambda request: request.body, folder, max_part_bytes=self._max_bytes, first=self._first
        )
        part = _file_part(parts)
        path = part.path
        if path is None:
            path = folder / "part"
            await asyncio.to_thread(path.write_bytes, part.read())
        sent_as = part.filename if part.filename is not None else "" if part.name == "file" else part.name
        return UploadedFile(path, re.split(r"[/\\]", sent_as)[-1])

    async def _counted(self) -> Requests:
        """The rest of the messages; 400 for more parts than a file that is sent twice."""
        received = 0
        async for request in self._requests:
            received += len(request.body.data)
            if received > 2 * self._max_bytes + MAX_FORM_BYTES:
                raise invalid("file", f"(more than {received} bytes)", f"at most {self._max_bytes} bytes")
            yield request

    async def discard(self) -> None:
        async for _ in self._requests:
            pass


def _file_part(parts: list[Part]) -> Part:
    """The part called file; else one with a filename; else one that is called as a file may be."""
    allowed = "one part called file with the program, or with a tar of its folder"
    full = [part for part in parts if part.size]
    for wanted in (
        [part for part in full if part.name == "file"],
        [part for part in full if part.filename],
        [part for part in full if part.name not in ("args", "sigName", "data")],
    ):
        if wanted:
            # Some clients send it twice.
            return wanted[0]
    names = ", ".join(repr(part.name[:50]) for part in parts[:5])
    raise invalid("file", f"(the upload has {names or 'no part'}{', empty' if parts else ''})", allowed)


def exec_detail(view: ExecView) -> scheduling_pb2.ExecDetail:
    """The task as clients read it."""
    return scheduling_pb2.ExecDetail(
        owner=view.owner,
        instance_group_name=view.group_name,
        instance_group_id=view.group_id,
        arguments=view.arguments,
        submission_id=view.driver_id or f"driver-{view.id}",
        id=view.id,
        application_id=view.application_id or view.id,
        master_url=view.master_url,
        state=view.state,
        execution_owner=view.execution_user or getpass.getuser(),
        created_at=format_time(view.created_at),
        finished_at=format_time(view.ended_at),
        status_message=view.status_message,
    )


def framework_detail(framework: ExecFramework) -> scheduling_pb2.ExecFramework:
    """The framework as clients read it."""
    return scheduling_pb2.ExecFramework(
        name=framework.name,
        descriptions=[framework.description, *framework.examples],
        framework_version=framework.version,
        distribute_strategy=framework.distribute_strategy,
        description=framework.description,
        parameter_servers=framework.parameter_servers,
    )


async def _json_text(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Bytes as one JSON string."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield b'"'
    async for data in pieces:
        yield json.dumps(decoder.decode(data))[1:-1].encode()
    yield json.dumps(decoder.decode(b"", final=True))[1:].encode()


async def _base64_json(path: Path) -> AsyncIterator[bytes]:
    """ExecResult of a file."""
    yield b'{"trainResult": "'
    async for block in read_blocks(path, BASE64_BLOCK_BYTES):
        yield base64.b64encode(block)
    yield b'"}'


def _wants_json(format_: str, context: Any) -> bool:
    """By `format`, else whether the client accepts JSON and nothing that a zip could be."""
    if format_.lower() not in ("", "zip", "json"):
        raise invalid("format", format_, ("zip", "json"))
    if format_:
        return format_.lower() == "json"
    accept = next((str(value) for key, value in context.invocation_metadata() or () if key == "accept"), "*/*")
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return JSON in kinds and not kinds & {BYTES, "application/zip", "application/*", "*/*"}
