"""The whole service over gRPC on a real database and disk; only its peers and Triton are played."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from dlmesh.inference.v1 import inference_pb2 as pb
from dlmesh.inference.v1 import inference_pb2_grpc
from inference_fakes import FakeCatalog, FakeJobs, FakeTrainings
from inference_service.settings import TritonSettings
from inference_service.storage.specs import PredictionSpec
from inference_service.usecases import model_health
from inference_service.wiring import build
from prediction_room import (
    CLASSIFIED,
    Room,
    application,
    publish,
    refused,
)
from servicekit.identity import acting_as
from testkit.services import ADMIN, ALICE, BOB, collect, running, settings_for
from triton_fixtures import until


async def test_the_default_name_is_made_of_both(room: Room) -> None:
    await room.create(name="")
    await room.serving("digits-first")


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "modelName"),
        ({"training_name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "trainName"),
        ({"model_name": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"training_name": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"name": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "inferenceModelName"),
        ({"name": "files"}, grpc.StatusCode.INVALID_ARGUMENT, "reserved"),
        ({"name": "digits"}, grpc.StatusCode.ALREADY_EXISTS, "digits"),
    ],
)
async def test_refused_models_leave_nothing(
    room: Room, fields: dict[str, str], code: grpc.StatusCode, words: str
) -> None:
    got, message = await refused(room.create(**fields))
    assert (got, words in message) == (code, True), message
    assert set(room.catalog.known) == {"digits"}
    # The name is still free for a good request.
    await room.create()
    await room.serving()


async def test_only_finished_trainings_of_known_frameworks_are_served(room: Room) -> None:
    room.trainings.training = replace(room.trainings.training, status="RUNNING")
    assert await refused(room.create()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "trainName: 'first' is not valid; allowed: a FINISHED training; this one is RUNNING",
    )
    room.trainings.training = replace(room.trainings.training, status="FINISHED")
    room.catalog.known["digits"] = replace(room.catalog.known["digits"], framework="Abacus")
    code, words = await refused(room.create())
    assert (code, "PyTorch" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_what_cannot_be_served_is_refused_at_once(room: Room) -> None:
    serving = Path(room.trainings.training.checkpoints_path) / "serving.json"
    serving.write_text(json.dumps({"labels": ["yes", "no"], "channels": 1}))
    assert await refused(room.create()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "trainName: 'first' is not valid; allowed: a training that can be served; of this one: "
        "serving.json of the training is not usable: it has no height, width; the model has no inference.py",
    )
    assert set(room.catalog.known) == {"digits"}


async def test_names_are_taken_for_everybody_and_others_models_are_forbidden(room: Room) -> None:
    await room.create()
    assert (await refused(room.create()))[0] is grpc.StatusCode.ALREADY_EXISTS
    with acting_as(BOB):
        assert (await refused(room.create("bobs")))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert (await refused(room.start()))[0] is grpc.StatusCode.PERMISSION_DENIED
    await room.start()
    with acting_as(BOB):
        assert (await refused(room.prediction()))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert await collect(room.stub.ListPredictions(pb.ListPredictionsRequest(model_name="online"))) == []
        room.catalog.add("bobs-digits", "bob")
        await room.create("bobs", model_name="bobs-digits")
        assert (await refused(room.start(modelname="bobs")))[0] is grpc.StatusCode.ALREADY_EXISTS
    with acting_as(ADMIN):
        assert (await room.prediction()).owner == "alice"


async def test_no_triton_says_what_to_do(room: Room) -> None:
    await room.create()
    room.server.missing = "Triton is not installed: run make setup"
    for call in (room.create("more"), room.start()):
        code, words = await refused(call)
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, room.server.missing)
    assert room.prediction_folders == []


async def test_predictions_wait_for_their_model_and_say_so(room: Room) -> None:
    room.server.is_away = True
    await room.create()
    await room.start()

    async def waiting() -> Any:
        message = (await room.prediction()).status_message
        return message if "Triton does not answer" in message else None

    assert "LOADING" in await until(waiting)
    assert room.jobs.submissions == 0
    room.server.is_away = False
    await room.submitted()


async def test_a_model_that_fails_fails_its_predictions_with_tritons_words(room: Room) -> None:
    room.server.refusal = "RuntimeError: Missing key(s) in state_dict"
    room.server.is_away = True
    await room.create()
    await room.start()
    room.server.is_away = False
    assert "Missing key(s)" in (await room.settled("FAILED")).status_message
    code, words = await refused(room.stub.GetPredictionResult(pb.GetPredictionResultRequest(name="p")))
    assert (code, "Missing key(s)" in words) == (grpc.StatusCode.ABORTED, True)
    assert "Missing key(s)" in room.catalog.descriptions["online"]
    code, words = await refused(room.start(predictname="next"))
    assert (code, "Missing key(s)" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_training_that_cannot_be_exported_fails(room: Room) -> None:
    room.catalog.lists_nothing = True
    await room.create()
    (Path(room.trainings.training.checkpoints_path) / "serving.json").unlink()
    await room.start()
    room.catalog.lists_nothing = False
    assert "serving.json" in (await room.settled("FAILED")).status_message


async def test_a_model_that_takes_triton_down_is_given_up(room: Room) -> None:
    room.server.dies_on_load = True
    room.server.is_away = True
    await room.create()
    await room.start()
    room.server.is_away = False
    assert "5 times" in (await room.settled("FAILED")).status_message
    assert room.server.loads == ["online"] * 5


async def test_what_triton_lost_is_loaded_again(room: Room) -> None:
    await room.create("one")
    await room.create("two")
    await room.serving("one")
    await room.serving("two")
    room.server.serving.clear()
    await room.serving("one")
    await room.serving("two")
    await room.start(modelname="one")
    await room.submitted()


async def test_a_model_whose_process_died_is_loaded_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_health, "LOOK_SECONDS", 0.05)
    await room.create()
    await room.serving()
    room.server.dead.add("online")

    async def revived() -> bool:
        return not room.server.dead

    await until(revived)
    assert room.server.loads == ["online", "online"]


async def test_a_deleted_model_is_unloaded(room: Room) -> None:
    await room.create()
    await room.serving()
    del room.catalog.known["online"]

    async def gone() -> bool:
        return not room.server.serving and not (room.settings.home / "inference/repository/online").exists()

    async def is_unknown() -> bool:
        # The row goes last; what is accepted until then ends as FAILED.
        try:
            await room.start(predictname=f"p-{uuid4().hex}")
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return False

    await until(gone)
    await until(is_unknown)


async def test_the_name_of_a_deleted_model_is_free_at_once(room: Room) -> None:
    await room.create()
    await room.serving()
    del room.catalog.known["online"]
    await room.create()
    await room.serving()
    assert room.server.loads == ["online", "online"]


async def test_a_new_process_goes_on_where_the_old_one_ended(tmp_path: Path) -> None:
    built, room = application(None, tmp_path)
    room.server.is_away = True
    with acting_as(ALICE):
        async with running(built, room.settings) as room.client:
            await room.create()
            await room.start()
        room.server.is_away = False
        built, _ = application(room, tmp_path)
        async with running(built, room.settings) as room.client:
            job_id = await room.submitted()
        room.server.serving.clear()
        publish(PredictionSpec.read(room.jobs.requests[job_id].command[3]))
        room.jobs.move(job_id, "FINISHED", result={"samples": 1, "best": None, "unreadable": [], **CLASSIFIED})
        built, _ = application(room, tmp_path)
        async with running(built, room.settings) as room.client:
            await room.settled("FINISHED")
            await room.serving()
    assert room.jobs.submissions == 1


async def test_the_models_service_may_be_away_between_the_row_and_the_listing(room: Room) -> None:
    room.catalog.lists_nothing = True
    await room.create()
    assert "online" not in room.catalog.known
    room.catalog.lists_nothing = False
    await room.serving()
    assert room.catalog.known["online"].owner == "alice"


def test_settings_name_the_variable(tmp_path: Path) -> None:
    environ = {"DLMESH_TRITON_HOME": str(tmp_path)}
    assert TritonSettings.from_environment(environ).installation is None
    external = TritonSettings.from_environment({**environ, "DLMESH_TRITON_URL": "http://triton:8000"})
    assert (external.url, external.grpc) == ("http://triton:8000", "triton:8001")
    assert not TritonSettings.from_environment({**environ, "DLMESH_TRITON": "0"}).enabled
    for name, text in (("DLMESH_TRITON_URL", "triton"), ("DLMESH_MAX_IMAGE_BYTES", "-1")):
        with pytest.raises(ValueError, match=name):
            TritonSettings.from_environment({**environ, name: text})


async def test_a_service_without_triton_starts_and_says_so(tmp_path: Path) -> None:
    for triton, words in ((TritonSettings(), "make setup"), (TritonSettings(enabled=False), "DLMESH_TRITON=0")):
        catalog = FakeCatalog()
        catalog.add("digits")
        settings = settings_for("inference", tmp_path)
        trainings = FakeTrainings("", "")
        built = build(settings, triton, catalog=catalog, trainings=trainings, jobs=FakeJobs())
        async with running(built, settings) as client:
            stub = client.stub(inference_pb2_grpc.InferenceServiceStub)
            with acting_as(ALICE):
                request = pb.CreateInferenceModelRequest(model_name="digits", training_name="first")
                code, message = await refused(stub.CreateInferenceModel(request))
        assert (code, words in message) == (grpc.StatusCode.UNAVAILABLE, True)
    assert not (tmp_path / "inference" / "triton.json").exists()


async def test_an_external_triton_is_published_and_not_started(tmp_path: Path) -> None:
    settings = settings_for("inference", tmp_path)
    triton = TritonSettings(url="http://triton:8000", grpc="triton:8001")
    async with running(build(settings, triton, jobs=FakeJobs()), settings):
        published = json.loads((tmp_path / "inference" / "triton.json").read_text())
    assert published == {"http": "http://triton:8000", "grpc": "triton:8001"}
