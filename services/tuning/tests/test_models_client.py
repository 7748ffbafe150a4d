"""What tunings ask of the models service, played on a real server that is killed now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.models.v1 import copies_pb2, copies_pb2_grpc, models_pb2, models_pb2_grpc
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError, already_exists, forbidden, not_found
from servicekit.server import Application
from testkit.services import ALICE, acting_as, running, settings_for
from tuning_service.clients.models import ModelsClient
from tuning_service.usecases.tunings import TrialModel

LIMIT_SECONDS = 240
TRIAL = TrialModel({"learningrate": 0.5}, 64, {"width": 8})


class PlayedModels(models_pb2_grpc.ModelServiceServicer, copies_pb2_grpc.ModelCopyServiceServicer):
    """`uids` of models by name; the next `lost` copies are cut off, after their models were made if `is_made`."""

    def __init__(self) -> None:
        self.uids = {"digits": "m1"}
        self.foreign: set[str] = set()
        self.lost = 0
        self.is_made = True
        self.asked: list[copies_pb2.CopyModelRequest] = []

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.ModelDetail:
        if request.model_name in self.foreign:
            raise forbidden("it is another user's")
        if request.model_name not in self.uids:
            raise not_found("model", request.model_name)
        return models_pb2.ModelDetail(uid=self.uids[request.model_name])

    async def CopyModel(self, request: copies_pb2.CopyModelRequest, context: Any) -> copies_pb2.CopyModelResponse:
        self.asked.append(request)
        if request.new_model_name in self.uids:
            raise already_exists("model", request.new_model_name)
        if self.is_made or not self.lost:
            self.uids[request.new_model_name] = request.uid
        if self.lost:
            self.lost -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return copies_pb2.CopyModelResponse()


@pytest.fixture
def models() -> PlayedModels:
    return PlayedModels()


@pytest.fixture
async def client(tmp_path: Path, models: PlayedModels) -> AsyncIterator[ModelsClient]:
    application = Application(
        "models",
        [
            (models_pb2_grpc.add_ModelServiceServicer_to_server, models, "dlmesh.models.v1.ModelService"),
            (copies_pb2_grpc.add_ModelCopyServiceServicer_to_server, models, "dlmesh.models.v1.ModelCopyService"),
        ],
    )
    async with running(application, settings_for("models", tmp_path)) as server:
        channels = Channels(settings_for("tuning", tmp_path, peers={"models": f"127.0.0.1:{server.port}"}))
        with acting_as(ALICE):
            async with asyncio.timeout(LIMIT_SECONDS):
                yield ModelsClient(channels)
        await channels.close()


async def test_a_copy_whose_answer_is_lost_is_no_conflict(client: ModelsClient, models: PlayedModels) -> None:
    models.lost = 1
    await client.copy("digits", "better", TRIAL)
    first, second = models.asked
    assert models.uids["better"] == first.uid != second.uid
    # The next one is.
    with pytest.raises(ServiceError) as caught:
        await client.copy("digits", "better", TRIAL)
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_a_copy_that_is_cut_off_is_made_anew(client: ModelsClient, models: PlayedModels) -> None:
    """Into another folder: what was left of the first is in the way."""
    models.lost, models.is_made = 2, False
    await client.copy("digits", "better", TRIAL)
    assert len({request.uid for request in models.asked}) == 3
    assert models.uids["better"] == models.asked[-1].uid
    assert (models.asked[0].batch_size, models.asked[0].hyperparameters.learning_rate) == (64, 0.5)


@pytest.mark.parametrize("is_foreign", [True, False])
async def test_a_name_that_is_taken_is_one(client: ModelsClient, models: PlayedModels, is_foreign: bool) -> None:
    models.uids["better"] = "m2"
    if is_foreign:
        models.foreign.add("better")
    with pytest.raises(ServiceError) as caught:
        await client.copy("digits", "better", TRIAL)
    assert caught.value.code is Code.ALREADY_EXISTS
