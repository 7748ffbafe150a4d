"""Validations of the whole service over gRPC on a real database; only its peers are played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import training_pb2
from servicekit.identity import acting_as
from testkit.services import ADMIN, ALICE
from training_fakes import DATASET
from training_room import Room, ask, refused, start
from training_service.domain.specs import ValidationSpec


async def test_a_validation_from_start_to_finish(room: Room) -> None:
    training = await room.finished()
    asked_for = training_pb2.StartValidationRequest(
        model_name="digits", name="check", training_name="first", metrics=["top1", "ConfusionMatrix"], threshold=0.1
    )
    with acting_as(ALICE):
        await room.validations.StartValidation(asked_for)
        job_id = (await room.validation()).application_id
        code, _ = await refused(room.validations.StartValidation(asked_for))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        # Its training is in use now.
        code, message = await refused(room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest)))
        assert code is grpc.StatusCode.ABORTED
        assert "check" in message
        code, _ = await refused(room.validations.DeleteValidation(ask(training_pb2.DeleteValidationRequest, "check")))
        assert code is grpc.StatusCode.ABORTED

    async def submitted() -> bool:
        return job_id in room.jobs.requests

    await room.until(submitted)
    asked = room.jobs.requests[job_id]
    assert (asked.kind, asked.ranks) == ("validation", 1)
    assert training.uid in Path(asked.command[3]).read_text()
    assert asked.max_silent_seconds == room.jobs.requests[training.application_id].max_silent_seconds == 1800
    spec = ValidationSpec.read(asked.command[3])
    assert (spec.input_dir, spec.label_file, spec.threshold) == ("/d/val", "/d/labels.txt", 0.1)
    assert spec.dataset_type == "LMDB"
    matrix = '{"labels":["a"],"matrix":[[1]]}'
    pairs = [{"name": "ConfusionMatrix", "value": matrix}, {"name": "Top1", "value": "0.975"}]
    room.jobs.move(job_id, "FINISHED", result={"pairs": pairs})

    async def finished() -> bool:
        return (await room.validation()).status == "FINISHED"

    await room.until(finished)
    detail = await room.validation()
    assert (detail.model_name, detail.dataset, detail.progress) == ("digits", "digits-data", 100)
    assert list(detail.parameters.metrics) == ["Top1", "ConfusionMatrix"]
    assert (detail.parameters.threshold, detail.parameters.max_silent_seconds) == (0.1, 1800)
    assert [(pair.name, pair.value) for pair in detail.results] == [("Top1", "0.975"), ("ConfusionMatrix", matrix)]
    with acting_as(ALICE):
        await room.validations.StopValidation(ask(training_pb2.StopValidationRequest, "check"))
        await room.validations.DeleteValidation(ask(training_pb2.DeleteValidationRequest, "check"))
        await room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "valName"),
        ({"training_name": "none"}, "trainName: 'none'.*first"),
        ({"metrics": []}, "metrics.*Top1, Top5, ConfusionMatrix"),
        ({"metrics": ["Top1", "mAP"]}, r"metrics: 'mAP'.*Top1, Top5, ConfusionMatrix \(those of LMDB datasets\)"),
        ({"threshold": 1.5}, "threshold: 1.5"),
        ({"threshold": float("nan")}, "threshold: nan"),
        ({"max_silent_seconds": -1}, "maxSilentSeconds: -1"),
    ],
)
async def test_a_bad_validation_request_names_what_is_wrong(room: Room, fields: dict[str, Any], message: str) -> None:
    await room.finished()
    body = {"model_name": "digits", "name": "check", "training_name": "first", "metrics": ["Top1"], **fields}
    with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await room.validations.StartValidation(training_pb2.StartValidationRequest(**body))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_training_of_somebody_else_is_not_validated(room: Room) -> None:
    await room.finished()
    with acting_as(ADMIN):
        await room.trainings.StartTraining(start(training_name="theirs"))
        room.jobs.move(await room.submitted("theirs"), "FINISHED")
    await room.settled("FINISHED", "theirs")

    async def validate(training: str) -> tuple[grpc.StatusCode, str]:
        body = {"model_name": "digits", "name": "check", "training_name": training, "metrics": ["ConfusionMatrix"]}
        return await refused(room.validations.StartValidation(training_pb2.StartValidationRequest(**body)))

    with acting_as(ALICE):
        assert (await refused(room.trainings.GetTraining(ask(training_pb2.GetTrainingRequest, "theirs"))))[0] is (
            grpc.StatusCode.PERMISSION_DENIED
        )
        assert (await validate("theirs"))[0] is grpc.StatusCode.PERMISSION_DENIED
        code, message = await validate("none")
    assert (code, "first" in message, "theirs" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True, False)
    with acting_as(ADMIN):
        assert "first, theirs" in (await validate("none"))[1]


async def test_without_validation_data_the_test_split_is_measured(room: Room) -> None:
    splits = {name: path for name, path in DATASET.splits.items() if name != "val"}
    room.datasets.known[DATASET.name] = replace(DATASET, splits=splits)
    await room.finished()
    asked_for = training_pb2.StartValidationRequest(
        model_name="digits", name="check", training_name="first", metrics=["Top1"]
    )
    with acting_as(ALICE):
        await room.validations.StartValidation(asked_for)
    job_id = (await room.validation()).application_id

    async def submitted() -> bool:
        return job_id in room.jobs.requests

    await room.until(submitted)
    assert ValidationSpec.read(room.jobs.requests[job_id].command[3]).input_dir == "/d/test"


async def test_an_inference_program_may_come_later(room: Room) -> None:
    training = await room.finished()
    code = room.settings.home / "trainings" / training.uid / "code"
    (code / "inference.py").unlink()
    room.models.known["digits"] = replace(room.models.known["digits"], template="mine")

    async def validate(name: str) -> str:
        asked_for = training_pb2.StartValidationRequest(
            model_name="digits", name=name, training_name="first", metrics=["Top1"], max_silent_seconds=7
        )
        with acting_as(ALICE):
            await room.validations.StartValidation(asked_for)
        return str((await room.validation(name)).application_id)

    async def started(job_id: str) -> Path:
        async def submitted() -> bool:
            return job_id in room.jobs.requests

        await room.until(submitted)
        request = room.jobs.requests[job_id]
        assert request.max_silent_seconds == 7
        return Path(ValidationSpec.read(request.command[3]).code)

    with pytest.raises(grpc.aio.AioRpcError, match=r"a training with inference\.py.*model 'digits'"):
        await validate("none")
    room.models.template_programs["mine/inference.py"] = "print('the template')"
    theirs = await started(await validate("template"))
    assert (theirs / "inference.py").read_text() == "print('the template')"
    assert (theirs / "main.py").read_text() == (code / "main.py").read_text()
    room.models.programs["digits/inference.py"] = "print('the model')"
    assert ((await started(await validate("model"))) / "inference.py").read_text() == "print('the model')"
    assert not (code / "inference.py").exists()
    # What it was when it was asked for counts.
    room.jobs.is_away = True
    job_id = await validate("frozen")
    room.models.programs["digits/inference.py"] = "print('changed')"
    room.jobs.is_away = False
    assert ((await started(job_id)) / "inference.py").read_text() == "print('the model')"
    room.models.programs["digits/inference.py"] = "#" * (1024 * 1024 + 1)
    with pytest.raises(grpc.aio.AioRpcError, match=r"has more than 1048576 characters"):
        await validate("long")


async def test_only_a_finished_training_can_be_validated(room: Room) -> None:
    await room.started()
    asked_for = training_pb2.StartValidationRequest(
        model_name="digits", name="check", training_name="first", metrics=["Top1"]
    )
    with acting_as(ALICE):
        code, message = await refused(room.validations.StartValidation(asked_for))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "this one is SUBMITTED" in message
