"""The RPCs: each translates and calls one use case."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
from dlmesh.models.v1 import copies_pb2, copies_pb2_grpc, models_pb2, models_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.errors import invalid
from servicekit.multipart import receive_multipart

from models_service.api.mapping import (
    files_text,
    framework_detail,
    model_detail,
    model_input,
    template_detail,
    template_input,
    tuned_input,
)
from models_service.usecases.frameworks import list_frameworks
from models_service.usecases.models import Models
from models_service.usecases.templates import Templates
from models_service.usecases.weights import Weights, choose_name

Context: TypeAlias = grpc.aio.ServicerContext


class ModelTemplateServicer(models_pb2_grpc.ModelTemplateServiceServicer):
    """/modeltemplates."""

    def __init__(self, templates: Templates) -> None:
        self._templates = templates

    async def CreateModelTemplate(self, request: models_pb2.CreateModelTemplateRequest, context: Context) -> Empty:
        await self._templates.create(template_input(request))
        return Empty()

    async def ListModelTemplates(
        self, request: models_pb2.ListModelTemplatesRequest, context: Context
    ) -> AsyncIterator[models_pb2.ModelTemplateDetail]:
        for template, files in await self._templates.list_visible(request.framework or None):
            yield template_detail(template, files)

    async def GetModelTemplate(
        self, request: models_pb2.GetModelTemplateRequest, context: Context
    ) -> models_pb2.ModelTemplateDetail:
        return template_detail(*await self._templates.get(request.name))

    async def UpdateModelTemplate(self, request: models_pb2.UpdateModelTemplateRequest, context: Context) -> Empty:
        await self._templates.update(request.name, template_input(request.template))
        return Empty()

    async def DeleteModelTemplate(self, request: models_pb2.DeleteModelTemplateRequest, context: Context) -> Empty:
        await self._templates.delete(request.name)
        return Empty()

    async def ListModelTemplateFiles(
        self, request: models_pb2.ListModelTemplateFilesRequest, context: Context
    ) -> StringValue:
        return StringValue(value=files_text(await self._templates.list_files(request.name)))

    async def ReadModelTemplateFile(
        self, request: models_pb2.ReadModelTemplateFileRequest, context: Context
    ) -> StringValue:
        return StringValue(value=await self._templates.read_file(request.file_name))


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """/models, without what runs on them."""

    def __init__(self, models: Models, weights: Weights) -> None:
        self._models = models
        self._weights = weights

    async def CreateModel(self, request: models_pb2.CreateModelRequest, context: Context) -> Empty:
        await self._models.create(model_input(request))
        return Empty()

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> AsyncIterator[models_pb2.ModelDetail]:
        for model, files in await self._models.list_visible(request.dataset or None):
            yield model_detail(model, files)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.ModelDetail:
        return model_detail(*await self._models.get(request.model_name))

    async def UpdateModel(self, request: models_pb2.UpdateModelRequest, context: Context) -> Empty:
        await self._models.update(request.model_name, model_input(request.model))
        return Empty()

    async def DeleteModel(self, request: models_pb2.DeleteModelRequest, context: Context) -> Empty:
        await self._models.delete(request.model_name)
        return Empty()

    async def ListModelFiles(self, request: models_pb2.ListModelFilesRequest, context: Context) -> StringValue:
        return StringValue(value=files_text(await self._models.list_files(request.model_name)))

    async def ReadModelFile(self, request: models_pb2.ReadModelFileRequest, context: Context) -> StringValue:
        return StringValue(value=await self._models.read_file(request.file_name))

    async def SaveModelFile(self, request: models_pb2.SaveModelFileRequest, context: Context) -> Empty:
        await self._models.save_file(request.model_name, model_input(request.model))
        return Empty()

    async def UploadWeightFile(
        self, requests: AsyncIterator[models_pb2.UploadWeightFileRequest], context: Context
    ) -> Empty:
        async def receive(spool: Path) -> tuple[str | None, Path]:
            parts = await receive_multipart(requests, lambda request: request.body, spool)
            part = next((part for part in parts if part.name == "file"), None) or next(
                (part for part in parts if part.filename is not None or len(parts) == 1), None
            )
            if part is None:
                raise invalid("file", [part.name for part in parts], "one file part called file")
            if part.path is None:
                part.path = spool / "small"
                part.path.write_bytes(part.value or b"")
            return choose_name(part.name, part.filename), part.path

        await self._weights.upload(receive)
        return Empty()


class ModelCopyServicer(copies_pb2_grpc.ModelCopyServiceServicer):
    """Models from what tunings found."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def CopyModel(self, request: copies_pb2.CopyModelRequest, context: Context) -> copies_pb2.CopyModelResponse:
        given = tuned_input(request.hyperparameters, request.batch_size)
        await self._models.copy(request.model_name, request.new_model_name, given, request.config_json, request.uid)
        return copies_pb2.CopyModelResponse()

    async def ConfigureModel(
        self, request: copies_pb2.ConfigureModelRequest, context: Context
    ) -> copies_pb2.ConfigureModelResponse:
        given = tuned_input(request.hyperparameters, request.batch_size)
        await self._models.configure(request.model_name, given, request.config_json)
        return copies_pb2.ConfigureModelResponse()


class FrameworkServicer(models_pb2_grpc.FrameworkServiceServicer):
    """/frameworks."""

    async def ListFrameworks(
        self, request: models_pb2.ListFrameworksRequest, context: Context
    ) -> AsyncIterator[models_pb2.FrameworkDetail]:
        for framework in list_frameworks(request.backend or None):
            yield framework_detail(framework)

    async def ListFrameworkNames(
        self, request: models_pb2.ListFrameworkNamesRequest, context: Context
    ) -> AsyncIterator[StringValue]:
        for framework in list_frameworks():
            yield StringValue(value=framework.name)
