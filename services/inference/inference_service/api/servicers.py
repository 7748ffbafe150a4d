"""The RPCs: each translates and calls one use case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
from dlmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from servicekit.errors import ServiceError, invalid, too_large
from servicekit.multipart import receive_multipart
from servicekit.threads import in_thread

from inference_service.api.mapping import (
    FIELDS,
    IGNORED,
    model_request,
    prediction_detail,
    prediction_request,
    prediction_result,
)
from inference_service.usecases.create_model import CreateInferenceModel
from inference_service.usecases.predictions import PredictionQueries
from inference_service.usecases.start_prediction import PredictionRequest, StartPrediction

Context: TypeAlias = grpc.aio.ServicerContext


@dataclass(frozen=True)
class UploadLimits:
    """Of an upload: bytes of one file, bytes of all, and files."""

    file_bytes: int
    bytes: int
    files: int


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """/inferences; `folder_of` tells where a prediction's files are, by its uid."""

    def __init__(
        self,
        create: CreateInferenceModel,
        start: StartPrediction,
        predictions: PredictionQueries,
        folder_of: Callable[[str], Path],
        limits: UploadLimits,
    ) -> None:
        self._create, self._start, self._predictions = create, start, predictions
        self._folder_of, self._limits = folder_of, limits

    async def CreateInferenceModel(self, request: inference_pb2.CreateInferenceModelRequest, context: Context) -> Empty:
        await self._create(model_request(request))
        return Empty()

    async def StartPrediction(
        self, requests: AsyncIterator[inference_pb2.StartPredictionRequest], context: Context
    ) -> Empty:
        async def receive(spool: Path) -> PredictionRequest:
            try:
                parts = await receive_multipart(
                    requests,
                    lambda request: request.body,
                    spool,
                    max_part_bytes=self._limits.file_bytes,
                    max_bytes=self._limits.bytes,
                    max_parts=self._limits.files + len(FIELDS) + len(IGNORED),
                )
            except ServiceError as error:
                if error.reason != "PART_TOO_LARGE":
                    raise
                allowed = f"at most {self._limits.file_bytes} bytes"
                raise too_large(error.metadata["field"], "the file", allowed) from error
            return await in_thread(prediction_request, parts, spool)

        await self._start(receive)
        return Empty()

    async def ListPredictions(
        self, request: inference_pb2.ListPredictionsRequest, context: Context
    ) -> AsyncIterator[inference_pb2.PredictionDetail]:
        if request.flag.lower() not in ("", "false"):
            raise invalid("flag", request.flag, "false: results are not saved to a file")
        for prediction in await self._predictions.list_visible(request.model_name or None):
            yield prediction_detail(prediction, self._folder_of(prediction.uid))

    async def GetPrediction(
        self, request: inference_pb2.GetPredictionRequest, context: Context
    ) -> inference_pb2.PredictionDetail:
        prediction = await self._predictions.get(request.name)
        return prediction_detail(prediction, self._folder_of(prediction.uid))

    async def GetPredictionResult(
        self, request: inference_pb2.GetPredictionResultRequest, context: Context
    ) -> inference_pb2.PredictionResult:
        length = request.length if request.HasField("length") else None
        return prediction_result(await self._predictions.results(request.name, request.start, length))

    async def StopPrediction(self, request: inference_pb2.StopPredictionRequest, context: Context) -> Empty:
        await self._predictions.stop(request.name)
        return Empty()

    async def DeletePrediction(self, request: inference_pb2.DeletePredictionRequest, context: Context) -> Empty:
        await self._predictions.delete(request.name)
        return Empty()
