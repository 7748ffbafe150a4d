"""The RPCs: each translates and calls one use case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias
from urllib.parse import quote

import grpc
from dlmesh.training.v1 import metrics_pb2, metrics_pb2_grpc, training_pb2, training_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.files import read_blocks

from training_service.api.mapping import (
    curves,
    metric_points,
    training_detail,
    training_metric,
    training_request,
    validation_detail,
    validation_request,
)
from training_service.domain.runs import Training, Validation
from training_service.usecases.metrics import ReadMetrics, RecordMetrics
from training_service.usecases.runs import ModelRuns, ModelTrainings
from training_service.usecases.start_training import StartTraining
from training_service.usecases.start_validation import StartValidation

Context: TypeAlias = grpc.aio.ServicerContext


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """/models/{modelname}/trainings; `path_of` tells where a training's weights are."""

    def __init__(
        self,
        start: StartTraining,
        trainings: ModelTrainings,
        read_metrics: ReadMetrics,
        path_of: Callable[[Training], str],
    ) -> None:
        self._start, self._trainings, self._read_metrics = start, trainings, read_metrics
        self._path_of = path_of

    async def StartTraining(self, request: training_pb2.StartTrainingRequest, context: Context) -> Empty:
        await self._start(request.model_name, training_request(request))
        return Empty()

    async def ListTrainings(
        self, request: training_pb2.ListTrainingsRequest, context: Context
    ) -> AsyncIterator[training_pb2.TrainingDetail]:
        for training in await self._trainings.list(request.model_name):
            yield training_detail(training, self._path_of(training))

    async def ListTrainingNames(
        self, request: training_pb2.ListTrainingNamesRequest, context: Context
    ) -> AsyncIterator[StringValue]:
        for training in await self._trainings.list(request.model_name):
            yield StringValue(value=training.name)

    async def GetTraining(
        self, request: training_pb2.GetTrainingRequest, context: Context
    ) -> training_pb2.TrainingDetail:
        training = await self._trainings.get(request.model_name, request.name)
        return training_detail(training, self._path_of(training))

    async def StopTraining(self, request: training_pb2.StopTrainingRequest, context: Context) -> Empty:
        await self._trainings.stop(request.model_name, request.name)
        return Empty()

    async def DeleteTraining(self, request: training_pb2.DeleteTrainingRequest, context: Context) -> Empty:
        await self._trainings.delete(request.model_name, request.name)
        return Empty()

    async def GetTrainingWeightFile(
        self, request: training_pb2.GetTrainingWeightFileRequest, context: Context
    ) -> StringValue:
        return StringValue(value=await self._trainings.weight_file(request.model_name, request.name))

    async def DownloadTrainingWeightFile(
        self, request: training_pb2.DownloadTrainingWeightFileRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        path = await self._trainings.weights(request.model_name, request.name, request.file)
        size = path.stat().st_size
        disposition = f'attachment; filename="{quote(path.name)}"; size={size}'
        await context.send_initial_metadata((("content-disposition", disposition),))
        async for block in read_blocks(path):
            yield HttpBody(content_type="application/octet-stream", data=block)

    async def ReadTrainingMetrics(
        self, request: training_pb2.ReadTrainingMetricsRequest, context: Context
    ) -> AsyncIterator[training_pb2.TrainingMetric]:
        async for point in self._read_metrics(request.model_name, request.name, curves(request)):
            yield training_metric(point)


class ValidationServicer(training_pb2_grpc.ValidationServiceServicer):
    """/models/{modelname}/validations."""

    def __init__(self, start: StartValidation, validations: ModelRuns[Validation]) -> None:
        self._start, self._validations = start, validations

    async def StartValidation(self, request: training_pb2.StartValidationRequest, context: Context) -> Empty:
        await self._start(request.model_name, validation_request(request))
        return Empty()

    async def ListValidations(
        self, request: training_pb2.ListValidationsRequest, context: Context
    ) -> AsyncIterator[training_pb2.ValidationDetail]:
        for validation in await self._validations.list(request.model_name):
            yield validation_detail(validation)

    async def StopValidation(self, request: training_pb2.StopValidationRequest, context: Context) -> Empty:
        await self._validations.stop(request.model_name, request.name)
        return Empty()

    async def DeleteValidation(self, request: training_pb2.DeleteValidationRequest, context: Context) -> Empty:
        await self._validations.delete(request.model_name, request.name)
        return Empty()


class MetricServicer(metrics_pb2_grpc.MetricServiceServicer):
    """What workers report."""

    def __init__(self, record: RecordMetrics) -> None:
        self._record = record

    async def RecordMetrics(
        self, request: metrics_pb2.RecordMetricsRequest, context: Context
    ) -> metrics_pb2.RecordMetricsResponse:
        recorded = await self._record(request.job_id, metric_points(request))
        return metrics_pb2.RecordMetricsResponse(recorded=recorded)
