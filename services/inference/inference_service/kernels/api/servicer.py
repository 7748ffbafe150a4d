"""The RPCs of models with a kernel: each translates and calls one use case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeAlias

import grpc
from dlmesh.inference.v1 import kernels_pb2, kernels_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.archives import ArchiveLimits
from servicekit.multipart import receive_multipart

from inference_service.kernels.api import mapping, profile_mapping
from inference_service.kernels.usecases.ask_kernels import AskKernels
from inference_service.kernels.usecases.change_model import ChangeKernelModel
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.publish_model import PublishKernelModel
from inference_service.kernels.usecases.start_stop_kernels import StartStopKernels
from inference_service.kernels.usecases.stream_tasks import StreamedTask, StreamKernelTasks
from inference_service.usecases.ports import Upload

Context: TypeAlias = grpc.aio.ServicerContext
# The gateway gives up on a request that is no stream after a minute; the caller is to be told why.
TRIAL_SECONDS = 55.0
# As many files as a model may have that comes in an archive.
MAX_PARTS = ArchiveLimits.members


class KernelModelServicer(kernels_pb2_grpc.KernelModelServiceServicer):
    """/edimodels and /dlim/v1/inference; `run_as` is who kernels run as."""

    def __init__(
        self,
        publish: PublishKernelModel,
        change: ChangeKernelModel,
        queries: KernelModelQueries,
        start_stop: StartStopKernels,
        ask: AskKernels,
        addresses: mapping.Addresses,
        *,
        run_as: str,
        max_model_bytes: int,
    ) -> None:
        self._publish, self._change, self._queries = publish, change, queries
        self._start_stop, self._ask, self._addresses = start_stop, ask, addresses
        self._run_as, self._max_model_bytes = run_as, max_model_bytes

    async def ListKernelModels(
        self, request: kernels_pb2.ListKernelModelsRequest, context: Context
    ) -> AsyncIterator[kernels_pb2.KernelModel]:
        for model in await self._queries.list_visible():
            yield mapping.model_detail(model, self._addresses)

    async def RegisterKernelModel(self, request: kernels_pb2.RegisterKernelModelRequest, context: Context) -> Empty:
        await self._publish.from_folder(mapping.publish_request(request))
        return Empty()

    async def PublishKernelModel(self, request: kernels_pb2.PublishKernelModelRequest, context: Context) -> Empty:
        await self._publish.from_folder(mapping.publish_request(request.model, request.model_name))
        return Empty()

    async def UploadKernelModel(
        self, requests: AsyncIterator[kernels_pb2.UploadKernelModelRequest], context: Context
    ) -> Empty:
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            first = kernels_pb2.UploadKernelModelRequest()

        async def receive(spool: Path) -> Sequence[Upload]:
            parts = await receive_multipart(
                requests,
                lambda request: request.body,
                spool,
                first=first,
                max_bytes=self._max_model_bytes,
                max_parts=MAX_PARTS,
            )
            return await asyncio.to_thread(mapping.uploads, parts, spool)

        await self._publish.from_upload(first.name, receive)
        return Empty()

    async def GetKernelModel(
        self, request: kernels_pb2.GetKernelModelRequest, context: Context
    ) -> kernels_pb2.KernelModel:
        return mapping.model_detail(await self._queries.get(request.name), self._addresses)

    async def UpdateKernelModel(self, request: kernels_pb2.UpdateKernelModelRequest, context: Context) -> Empty:
        await self._change.update(request.name, lambda model: mapping.changes(request.model, model, self._addresses))
        return Empty()

    async def DeleteKernelModel(self, request: kernels_pb2.DeleteKernelModelRequest, context: Context) -> Empty:
        await self._change.delete(request.name)
        return Empty()

    async def GetKernelModelReadme(
        self, request: kernels_pb2.GetKernelModelReadmeRequest, context: Context
    ) -> kernels_pb2.KernelModelReadme:
        return kernels_pb2.KernelModelReadme(readme=await self._queries.readme(request.name))

    async def GetKernelProfile(
        self, request: kernels_pb2.GetKernelProfileRequest, context: Context
    ) -> kernels_pb2.KernelProfile:
        model = await self._queries.get(request.name)
        return profile_mapping.profile_detail(model, self._addresses.of_files(model), self._run_as)

    async def UpdateKernelProfile(self, request: kernels_pb2.UpdateKernelProfileRequest, context: Context) -> Empty:
        await self._change.update_profile(
            request.name,
            lambda model: profile_mapping.changed_profile(
                request.profile, model, self._addresses.of_files(model), self._run_as
            ),
        )
        return Empty()

    async def StartKernelModel(self, request: kernels_pb2.StartKernelModelRequest, context: Context) -> Empty:
        await self._start_stop.start(request.name)
        return Empty()

    async def StopKernelModel(self, request: kernels_pb2.StopKernelModelRequest, context: Context) -> Empty:
        await self._start_stop.stop(request.name)
        return Empty()

    async def GetKernelInstances(
        self, request: kernels_pb2.GetKernelInstancesRequest, context: Context
    ) -> kernels_pb2.KernelInstances:
        return mapping.instances(*await self._queries.statistics(request.name))

    async def TestKernelModel(
        self, request: kernels_pb2.TestKernelModelRequest, context: Context
    ) -> kernels_pb2.TestKernelModelResponse:
        await self._ask.model(request.name)
        text = mapping.trial_input(request)
        output = await self._ask(request.name, text, session_id=request.user, most_seconds=TRIAL_SECONDS)
        return mapping.trial_answer(request.name, output)

    async def GetKernelStream(self, request: kernels_pb2.GetKernelStreamRequest, context: Context) -> StringValue:
        await self._queries.get(request.name)
        return StringValue(value=f"grpc://{self._addresses.public_address}{mapping.STREAM_METHOD}")

    async def InvokeKernelModel(self, request: kernels_pb2.InvokeKernelModelRequest, context: Context) -> HttpBody:
        return mapping.task_output(await self._ask(request.name, mapping.task_input(request.body)))


class KernelStreamServicer(kernels_pb2_grpc.KernelStreamServiceServicer):
    """Tasks in streams."""

    def __init__(self, stream: StreamKernelTasks) -> None:
        self._stream = stream

    async def StreamKernelTasks(
        self, requests: AsyncIterator[kernels_pb2.StreamKernelTasksRequest], context: Context
    ) -> AsyncIterator[kernels_pb2.StreamKernelTasksResponse]:
        async for answer in self._stream(_tasks(requests)):
            yield kernels_pb2.StreamKernelTasksResponse(id=answer.id, output=answer.output, error=answer.error)


async def _tasks(requests: AsyncIterator[kernels_pb2.StreamKernelTasksRequest]) -> AsyncIterator[StreamedTask]:
    async for request in requests:
        yield StreamedTask(request.id, request.input, request.name, request.session_id)
