"""The RPCs about what is served: each translates and calls one use case."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from dlmesh.inference.v1 import serving_pb2, serving_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from servicekit.errors import invalid
from servicekit.times import format_time

from inference_service.domain.models import ModelVersion
from inference_service.usecases.add_version import AddVersion, VersionRequest
from inference_service.usecases.admit_inference import AdmitInference
from inference_service.usecases.served_models import ServedModelQueries, ServedModelView
from inference_service.usecases.version_traffic import VersionTraffic

Context: TypeAlias = grpc.aio.ServicerContext


class ServedModelServicer(serving_pb2_grpc.ServedModelServiceServicer):
    """/servedmodels."""

    def __init__(self, queries: ServedModelQueries, add: AddVersion, traffic: VersionTraffic) -> None:
        self._queries, self._add, self._traffic = queries, add, traffic

    async def ListServedModels(
        self, request: serving_pb2.ListServedModelsRequest, context: Context
    ) -> AsyncIterator[serving_pb2.ServedModel]:
        for view in await self._queries.list_visible():
            yield served_model(view)

    async def GetServedModel(
        self, request: serving_pb2.GetServedModelRequest, context: Context
    ) -> serving_pb2.ServedModel:
        return served_model(await self._queries.get(request.name))

    async def AddServedModelVersion(
        self, request: serving_pb2.AddServedModelVersionRequest, context: Context
    ) -> serving_pb2.ServedModelVersion:
        return served_version(await self._add(VersionRequest(request.name, request.training_name, request.model_name)))

    async def SetTraffic(self, request: serving_pb2.SetTrafficRequest, context: Context) -> serving_pb2.ServedModel:
        shares: dict[int, int] = {}
        for share in request.shares:
            if share.version in shares:
                raise invalid("shares.version", share.version, "each version once")
            shares[share.version] = share.percentage
        return served_model(self._queries.view(await self._traffic.set(request.name, shares)))

    async def DeleteServedModelVersion(
        self, request: serving_pb2.DeleteServedModelVersionRequest, context: Context
    ) -> Empty:
        await self._traffic.delete(request.name, request.version)
        return Empty()


class AdmissionServicer(serving_pb2_grpc.AdmissionServiceServicer):
    """Asked by the gateway in the name of a user."""

    def __init__(self, admit: AdmitInference) -> None:
        self._admit = admit

    async def AdmitInference(
        self, request: serving_pb2.AdmitInferenceRequest, context: Context
    ) -> serving_pb2.AdmitInferenceResponse:
        admission = await self._admit(request.model_name, request.version, request.is_look)
        return serving_pb2.AdmitInferenceResponse(
            shares=[
                serving_pb2.TrafficShare(version=version, percentage=percentage)
                for version, percentage in admission.shares.items()
            ],
            lifetime_seconds=admission.lifetime_seconds,
        )


def served_model(view: ServedModelView) -> serving_pb2.ServedModel:
    """With all versions, oldest first."""
    model = view.model
    return serving_pb2.ServedModel(
        name=model.name,
        owner=model.owner,
        state=str(model.state),
        status_message=model.status_message,
        is_loaded=view.is_loaded,
        versions=[served_version(version) for version in model.versions],
        created_at=format_time(model.created_at),
        last_used_at=format_time(view.last_used_at),
    )


def served_version(version: ModelVersion) -> serving_pb2.ServedModelVersion:
    """As the contract has it."""
    return serving_pb2.ServedModelVersion(
        version=version.number,
        model_name=version.source_model,
        training_name=version.training_name,
        state=str(version.state),
        status_message=version.status_message,
        percentage=version.percentage,
        created_at=format_time(version.created_at),
    )
