"""The clients of the peers, against servers that answer as the contract says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.channels import Channels
from servicekit.errors import ServiceError, forbidden, invalid, not_found
from servicekit.server import Application
from testkit.services import running, settings_for
from training_service.clients.catalog import DatasetsClient, ModelsClient


class Models(models_pb2_grpc.ModelServiceServicer):
    async def ReadModelFile(self, request: Any, context: Any) -> Any:
        texts = {"digits/inference.py": "print('model')", "nul/inference.py": "\0", "empty/inference.py": ""}
        if request.file_name == "link/inference.py":
            raise invalid("filename", request.file_name, "a relative path that stays inside its folder")
        if request.file_name not in texts:
            raise not_found("file", request.file_name)
        return StringValue(value=texts[request.file_name])

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.model_name != "digits":
            raise not_found("model", request.model_name)
        hyperparameters = models_pb2.Hyperparameters(learning_rate=0.002, solver="Adam", epochs=3, momentum=0)
        return models_pb2.ModelDetail(
            uid="m1", name="digits", path="/m1", hyperparameters=hyperparameters, batch_size=16, instance_group="g1"
        )


class Templates(models_pb2_grpc.ModelTemplateServiceServicer):
    async def ReadModelTemplateFile(self, request: Any, context: Any) -> Any:
        if request.file_name == "theirs/inference.py":
            raise forbidden("model template 'theirs' belongs to another user")
        return StringValue(value=f"print('{request.file_name}')")


class Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request: Any, context: Any) -> Any:
        return datasets_pb2.DatasetDetail(
            uid="u1", name=request.name, train_path="/data/my/train", test_path="/data/my/test", status="FINISHED"
        )


async def test_models_and_datasets(tmp_path: Path) -> None:
    settings = settings_for("models", tmp_path)
    servicers = [
        (models_pb2_grpc.add_ModelServiceServicer_to_server, Models(), "dlmesh.models.v1.ModelService"),
        (
            models_pb2_grpc.add_ModelTemplateServiceServicer_to_server,
            Templates(),
            "dlmesh.models.v1.ModelTemplateService",
        ),
        (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, Datasets(), "dlmesh.datasets.v1.DatasetService"),
    ]
    async with running(Application("models", servicers), settings) as client:
        address = f"127.0.0.1:{client.port}"
        channels = Channels(settings_for("training", tmp_path, peers={"models": address, "datasets": address}))
        models = ModelsClient(channels)
        model = await models.get("digits")
        # By the names of the contract, floats as they were meant, zeros kept.
        assert model.hyperparameter == {"learningrate": 0.002, "solvertype": "Adam", "epoch": 3, "momentum": 0.0}
        assert (model.uid, model.path, model.batch_size) == ("m1", "/m1", 16)
        assert (await models.uid_of("digits"), await models.uid_of("gone")) == ("m1", None)
        assert await models.program("digits", "inference.py") == "print('model')"
        assert [await models.program(name, "inference.py") for name in ("none", "link", "nul", "empty")] == [None] * 4
        assert await models.template_program("mine", "inference.py") == "print('mine/inference.py')"
        with pytest.raises(ServiceError, match="belongs to another user"):
            await models.template_program("theirs", "inference.py")
        dataset = await DatasetsClient(channels).get("data")
        assert (dataset.uid, dataset.status) == ("u1", "FINISHED")
        assert dataset.splits == {"train": "/data/my/train", "test": "/data/my/test"}
        await channels.close()
