"""The models and datasets services, asked with the caller's own rights."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.models.v1 import hyperparameters_pb2, hyperparameters_pb2_grpc, models_pb2, models_pb2_grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError
from servicekit.trials import value_message, value_of

from training_service.usecases.ports import DatasetFacts, FrameworkFacts, ModelFacts, SettledHyperparameters

Value = hyperparameters_pb2.HyperparameterValue


class ModelsClient:
    """`ports.Models`."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("models", models_pb2_grpc.ModelServiceStub)
        self._templates = channels.stub("models", models_pb2_grpc.ModelTemplateServiceStub)
        self._frameworks = channels.stub("models", models_pb2_grpc.FrameworkServiceStub)
        self._hyperparameters = channels.stub("models", hyperparameters_pb2_grpc.HyperparameterServiceStub)

    async def get(self, name: str) -> ModelFacts:
        detail = await call_peer(lambda: self._stub.GetModel(models_pb2.GetModelRequest(model_name=name)))
        return ModelFacts(
            uid=detail.uid,
            name=detail.name,
            path=detail.path,
            owner=detail.owner,
            framework=detail.framework,
            accelerator=detail.accelerator,
            dataset=detail.dataset,
            batch_size=detail.batch_size,
            instance_group=detail.instance_group,
            # By the names of the contract, which are those that the sdk reads.
            hyperparameter=MessageToDict(detail.hyperparameters),
            initial_weights=detail.initial_weights,
            weights_folder=detail.weights_folder,
            type=detail.type,
            distribute_strategy=detail.distribute_strategy,
            template=detail.template_name,
        )

    async def frameworks(self) -> Sequence[FrameworkFacts]:
        async def listed() -> list[FrameworkFacts]:
            request = models_pb2.ListFrameworksRequest()
            return [
                FrameworkFacts(found.name, found.backend) async for found in self._frameworks.ListFrameworks(request)
            ]

        return await call_peer(listed)

    async def program(self, name: str, file: str) -> str | None:
        request = models_pb2.ReadModelFileRequest(file_name=f"{name}/{file}")
        return await _program(lambda: self._stub.ReadModelFile(request))

    async def template_program(self, name: str, file: str) -> str | None:
        request = models_pb2.ReadModelTemplateFileRequest(file_name=f"{name}/{file}")
        return await _program(lambda: self._templates.ReadModelTemplateFile(request))

    async def settle(
        self,
        name: str,
        given: Mapping[str, Any],
        candidates: Mapping[str, Sequence[Any]],
        *,
        accelerator: str,
        field: str,
    ) -> SettledHyperparameters:
        request = hyperparameters_pb2.SettleHyperparametersRequest(
            model_name=name,
            given={parameter: value_message(Value, value) for parameter, value in given.items()},
            candidates={
                parameter: hyperparameters_pb2.HyperparameterValues(
                    values=[value_message(Value, value) for value in values]
                )
                for parameter, values in candidates.items()
            },
            accelerator=accelerator,
            field=field,
        )
        answer = await call_peer(lambda: self._hyperparameters.SettleHyperparameters(request))
        return SettledHyperparameters(
            {parameter: value_of(value, parameter) for parameter, value in answer.hyperparameters.items()},
            tuple(answer.known),
        )

    async def uid_of(self, name: str) -> str | None:
        try:
            return (await self.get(name)).uid
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise


async def _program(call: Callable[[], Awaitable[StringValue]]) -> str | None:
    try:
        text = str((await call_peer(call)).value)
    except ServiceError as error:
        # There is none, or it is no text, too long or a link that leads elsewhere.
        if error.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
            return None
        raise
    # Python runs no text with a NUL, and no database takes it.
    return text if text and "\0" not in text else None


class DatasetsClient:
    """`ports.Datasets`."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("datasets", datasets_pb2_grpc.DatasetServiceStub)

    async def get(self, name: str) -> DatasetFacts:
        detail = await call_peer(lambda: self._stub.GetDataset(datasets_pb2.GetDatasetRequest(name=name)))
        splits = {"train": detail.train_path, "val": detail.validation_path, "test": detail.test_path}
        return DatasetFacts(
            name=detail.name,
            uid=detail.uid,
            status=detail.status,
            content_hash=detail.content_hash,
            splits={split: path for split, path in splits.items() if path},
            type=detail.backend,
        )
