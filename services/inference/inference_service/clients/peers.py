"""The models and training services."""

from __future__ import annotations

from pathlib import Path

from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from dlmesh.training.v1 import training_pb2, training_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError

from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import ModelFacts, TrainingFacts


class CatalogClient:
    """`ports.Catalog`."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("models", models_pb2_grpc.ModelServiceStub)

    async def get(self, name: str) -> ModelFacts:
        detail = await call_peer(lambda: self._stub.GetModel(models_pb2.GetModelRequest(model_name=name)))
        return ModelFacts(
            uid=detail.uid,
            name=detail.name,
            owner=detail.owner,
            type=detail.type,
            path=detail.path,
            template_name=detail.template_name,
            framework=detail.framework,
            dataset=detail.dataset,
            instance_group=detail.instance_group,
            weights_folder=detail.weights_folder,
        )

    async def find(self, name: str) -> ModelFacts | None:
        try:
            return await self.get(name)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise

    async def create_inference(self, model: InferenceModel, description: str) -> None:
        request = models_pb2.CreateModelRequest(
            name=model.name,
            description=description,
            template_name=model.template_name,
            dataset=model.dataset_name,
            instance_group=model.instance_group,
            type="Inference",
            weights_folder=model.versions[0].checkpoints_path,
        )
        await call_peer(lambda: self._stub.CreateModel(request))

    async def describe(self, name: str, description: str) -> None:
        detail = models_pb2.ModelDetail(description=description)
        request = models_pb2.UpdateModelRequest(model_name=name, model=detail)
        await call_peer(lambda: self._stub.UpdateModel(request))


class TrainingsClient:
    """`ports.Trainings`."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("training", training_pb2_grpc.TrainingServiceStub)

    async def get(self, model_name: str, name: str) -> TrainingFacts:
        request = training_pb2.GetTrainingRequest(model_name=model_name, name=name)
        parameters = (await call_peer(lambda: self._stub.GetTraining(request))).parameters
        checkpoints = Path(parameters.path)
        return TrainingFacts(
            uid=parameters.uid,
            name=parameters.training_name,
            status=parameters.status,
            # The program as it was when these weights were trained, not as the model has it now.
            code_path=str(checkpoints.parent / "code"),
            checkpoints_path=str(checkpoints),
        )
