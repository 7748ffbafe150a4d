"""What a trial may be asked to be, and how it runs then."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from servicekit.errors import ServiceError, invalid
from testkit.services import ALICE, acting_as
from training_fakes import DATASET, GROUP, MODEL
from training_room import Room, refused
from training_service.domain.specs import TrainingSpec
from training_service.domain.trials import check_user_defined, read_batch_size
from training_service.storage.trial_files import read_config
from training_service.usecases.trial_fields import as_tuning_knows
from trial_room import Value, check, start, start_refused

SAMPLE = {"learningrate": Value(number=0.5)}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"owner": ""}, "owner: ''"),
    ({"owner": "a\0b"}, "owner: "),
    ({"study": " "}, "study: ' '"),
    ({"study": "s" * 129}, "study: "),
    ({"hyperparameters": {"rho": Value(number=0.5)}}, "hyperParams: 'rho' .*learningrate"),
    ({"hyperparameters": {"momentum": Value(number=-1)}}, "hyperParams.momentum: -1.0"),
    ({"hyperparameters": {"momentum": Value()}}, "hyperParams.momentum: ''"),
    ({"hyperparameters": {"batchsize": Value(whole=0)}}, "hyperParams.batchsize: 0"),
    ({"hyperparameters": {"batchsize": Value(text="many")}}, "hyperParams.batchsize: 'many'"),
    ({"user_defined": {"momentum": Value(whole=1)}}, "hyperParams.momentum: 1 .*no hyperparameter has"),
    ({"user_defined": {"batchsize": Value(whole=1)}}, "hyperParams.batchsize: 1 .*no hyperparameter has"),
    ({"user_defined": {"x": Value(number=float("nan"))}}, "hyperParams.x: nan .*finite"),
    ({"user_defined": {"x": Value(text="\0")}}, "hyperParams.x: .*NUL"),
    ({"user_defined": {"x": Value(text="x" * (1 << 20))}}, "hyperParams: .* at most 1048576 bytes"),
    ({"framework": "Caffe"}, "resDef.framework: 'Caffe' .*PyTorch, the framework of model"),
    ({"framework": "mxnet"}, "resDef.framework: 'mxnet' .*Caffe, PyTorch"),
    ({"batch_size": -1}, "resDef.batchsize: -1"),
    ({"workers": -1}, "resDef.workerNum: -1"),
    ({"workers": 3}, "resDef.workerNum: 3 .*1 to 2, the slots of local"),
    ({"gpus": -1}, "resDef.gpuNum: -1"),
    ({"sync_mode": "ASYNCH"}, "resDef.syncMode: 'ASYNCH'"),
    ({"sync_mode": "async"}, "resDef.syncMode: 'async' .*not Elastic"),
    ({"initial_weights": "none"}, "resDef.initWeightPath: 'none' .*existing file or folder"),
    ({"initial_weights": "/etc/passwd"}, "resDef.initWeightPath: '/etc/passwd'"),
    ({"initial_weights": "../../etc"}, "resDef.initWeightPath: "),
    ({"instance_group": "moon"}, "resDef.resourceInstanceId: 'moon' .*local"),
    ({"max_iterations": -1}, "resDef.maxiteration: -1"),
    ({"min_iterations": -1}, "resDef.miniteration: -1"),
    ({"min_iterations": 5, "max_iterations": 4}, "resDef.miniteration: 5 .*1 to 4, maxiteration"),
    ({"max_seconds": -1}, "max_seconds: -1"),
    ({"max_seconds": float("nan")}, "max_seconds: nan"),
]


async def test_what_is_wrong_is_named_as_the_client_knows_it(room: Room, tmp_path: Path) -> None:
    for changes, message in WRONG:
        for call in (check, start):
            code, details = await refused(call(room, **changes))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, changes
            assert re.match(message, details), details
    assert (room.jobs.requests, (tmp_path / "trainings").exists()) == ({}, False)


async def test_each_candidate_is_checked(room: Room) -> None:
    await check(room, {"momentum": [Value(number=0), Value(number=1)], "batchsize": [Value(whole=8)]})
    for name, values, message in (
        ("momentum", [Value(number=0), Value(number=-1)], "hyperParams.momentum: -1"),
        ("batchsize", [Value(whole=8), Value(whole=0)], "hyperParams.batchsize: 0"),
        ("rho", [Value(whole=8)], "hyperParams: 'rho'"),
    ):
        code, details = await refused(check(room, {name: values}))
        assert (code, details.startswith(message)) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ({"type": "Inference"}, {}, "modelname.*inference only"),
        ({"accelerator": "Single"}, {}, "resDef.workerNum: 2.*Single"),
        ({"dataset": ""}, {}, "dataset"),
        ({"instance_group": "moon"}, {}, "sig of the model: 'moon' is .*local"),
        ({"path": "/nowhere"}, {}, "modelname.*main.py"),
        ({}, {"status": "RUNNING"}, "dataset.*this one is RUNNING"),
    ],
)
async def test_the_model_and_its_dataset_must_fit(
    room: Room, model: dict[str, Any], dataset: dict[str, Any], message: str
) -> None:
    room.models.known["digits"] = replace(room.models.known["digits"], **model)
    room.datasets.known["digits-data"] = replace(DATASET, **dataset)
    with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await check(room, workers=2)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_model_is_not_found(room: Room) -> None:
    assert (await refused(check(room, model_name="letters")))[0] is grpc.StatusCode.NOT_FOUND
    assert (await start_refused(room, model_uid="another"))[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("asked", "ranks", "warning"),
    [
        ({}, 1, ""),
        ({"workers": 2}, 2, ""),
        ({"workers": 2, "distribute": True}, 2, ""),
        ({"workers": 2, "distribute": False}, 1, "resDef.workerNum: 2 is not used"),
        # More than there is room for, and not asked for.
        ({"workers": 9, "distribute": False}, 1, "resDef.workerNum: 9 is not used"),
        ({"workers": 1, "distribute": False}, 1, ""),
        ({"gpus": 2}, 1, "resDef.gpuNum: local has no GPUs"),
    ],
)
async def test_one_worker_unless_it_is_distributed(room: Room, asked: dict[str, Any], ranks: int, warning: str) -> None:
    checked = await check(room, **asked)
    assert "; ".join(checked.warnings).startswith(warning)
    assert len(checked.warnings) == bool(warning)
    assert room.jobs.requests[await start(room, **asked)].ranks == ranks


async def test_gpus_are_those_of_each_worker(room: Room) -> None:
    room.jobs.group = replace(GROUP, gpus=3)
    assert room.jobs.requests[await start(room, workers=2)].gpus_per_rank == 1
    assert room.jobs.requests[await start(room, gpus=3)].gpus_per_rank == 3
    room.models.known["digits"] = replace(native := room.models.known["digits"], accelerator="Elastic")
    job = room.jobs.requests[await start(room, gpus=2, workers=2, framework="PyTorchOnElastic")]
    assert (job.ranks, job.gpus_per_rank) == (1, 2)
    room.models.known["digits"] = native
    code, message = await start_refused(room, gpus=2, workers=2)
    assert (code, message.startswith("resDef.workerNum: 2")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, message = await start_refused(room, gpus=4)
    assert (code, message.startswith("resDef.gpuNum: 4")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    room.jobs.group = GROUP
    # The scheduling service warns then.
    assert room.jobs.requests[await start(room, gpus=2)].gpus_per_rank == 2


async def test_programs_find_the_number_of_their_trial(room: Room) -> None:
    numbered, other = await start(room, number=7), await start(room)
    assert room.jobs.requests[numbered].environment["SUBID"] == "7"
    assert room.jobs.requests[other].environment["SUBID"] == other
    assert "DLMESH_ZERO_STAGE" in room.jobs.requests[numbered].environment
    assert "SUBID" not in room.jobs.requests[await room.started()].environment


async def told(room: Room, **asked: Any) -> TrainingSpec:
    return TrainingSpec.read(room.jobs.requests[await start(room, **asked)].command[3])


async def test_iterations_of_the_request_are_for_trials_without_their_own(room: Room) -> None:
    parameters = (await told(room, max_iterations=40, min_iterations=4, hyperparameters=SAMPLE)).parameters
    assert parameters["hyperparameter"] == {**MODEL.hyperparameter, "learningrate": 0.5, "maxiteration": 40}
    own = {"maxiteration": Value(whole=9)}
    parameters = (await told(room, max_iterations=40, hyperparameters=own)).parameters
    assert parameters["hyperparameter"] == {**MODEL.hyperparameter, "maxiteration": 9}


async def test_the_batch_size_is_the_trials_or_the_requests_or_the_models(room: Room) -> None:
    assert (await told(room)).parameters["batch_size"] == MODEL.batch_size
    assert (await told(room, batch_size=8)).parameters["batch_size"] == 8
    found = await told(room, batch_size=8, hyperparameters={"batchsize": Value(number=4.0)})
    assert found.parameters["batch_size"] == 4
    assert "batchsize" not in found.parameters["hyperparameter"]


async def test_weights_to_begin_from(room: Room) -> None:
    home, uploads = room.settings.home, room.settings.home / "weights" / "alice"
    uploads.mkdir(parents=True)
    (uploads / "mine.pth").touch()
    (home / "data" / "old").mkdir()
    (home / "data" / "old" / "w.pth").touch()
    assert (await told(room, initial_weights="mine.pth")).weights == str(uploads / "mine.pth")
    assert (await told(room, initial_weights="old")).weights == str(home / "data" / "old")
    assert (await told(room, initial_weights="old/w.pth")).weights == str(home / "data" / "old" / "w.pth")
    room.models.known["digits"] = replace(room.models.known["digits"], weights_folder=str(home / "data" / "old"))
    assert (await told(room)).weights == str(home / "data" / "old")
    assert (await told(room, initial_weights="mine.pth")).weights == str(uploads / "mine.pth")
    code, message = await start_refused(room, owner="bob", initial_weights="mine.pth")
    assert (code, message.startswith("resDef.initWeightPath")) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_weights_of_another_trial_are_for_who_may_see_it(room: Room) -> None:
    first = await told(room)
    folder = first.train_dir
    assert (await told(room, initial_weights=folder)).weights == folder
    assert (await start_refused(room, owner="bob", initial_weights=folder))[0] is grpc.StatusCode.PERMISSION_DENIED
    with acting_as(ALICE):
        # Nor does it go while a training begins from it.
        await room.started("next", weights_folder=folder)


async def test_parameters_that_the_model_has_stay_beside_those_of_the_trial(room: Room) -> None:
    place = Path(room.models.known["digits"].path) / "config.json"
    place.write_text('{"layers": 1, "kind": "wide", "epoch": 9}')
    found = await told(room, user_defined={"layers": Value(whole=2)})
    written = json.loads((Path(found.code) / "config.json").read_text())
    assert written == {**MODEL.hyperparameter, "batchsize": 64, "layers": 2, "kind": "wide"}
    assert MODEL.hyperparameter["epoch"] != 9


@pytest.mark.parametrize(
    "text", [b"[1]", b"{", b"", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": "' + b"x" * (1 << 20) + b'"}']
)
def test_no_parameters_of_a_model(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    assert read_config(tmp_path) == {}
    assert read_config(tmp_path / "none") == {}


@pytest.mark.parametrize("in_the_way", ["folder", "link", "file"])
async def test_the_parameters_are_written_over_what_the_model_has_there(
    room: Room, tmp_path: Path, in_the_way: str
) -> None:
    place = Path(room.models.known["digits"].path) / "config.json"
    other = tmp_path / "data" / "other.json"
    other.write_text('{"of": "others"}')
    if in_the_way == "folder":
        place.mkdir()
        (place / "lies.txt").touch()
    elif in_the_way == "link":
        place.symlink_to(other)
    else:
        place.write_text("{}")
    found = await told(room, hyperparameters=SAMPLE, user_defined={"layers": Value(whole=2)})
    written = json.loads((Path(found.code) / "config.json").read_text())
    assert written == {**MODEL.hyperparameter, "learningrate": 0.5, "batchsize": 64, "layers": 2}
    assert other.read_text() == '{"of": "others"}'
    # Other trainings have the model's own.
    code = Path(TrainingSpec.read(room.jobs.requests[await room.started()].command[3]).code)
    assert (code / "config.json").is_dir() == (in_the_way == "folder")
    texts = {"link": '{"of": "others"}', "file": "{}"}
    assert in_the_way == "folder" or (code / "config.json").read_text() == texts[in_the_way]


def test_fields_are_renamed_and_others_stay() -> None:
    assert as_tuning_knows(invalid("gpus", 3, "1")).metadata["field"] == "resDef.gpuNum"
    assert as_tuning_knows(invalid("dataset", "d", "e")).message.startswith("dataset: 'd'")


@pytest.mark.parametrize("value", [True, 0, 1.5, "x", "", float("inf"), 2**31, "1e400", None])
def test_no_batch_size(value: Any) -> None:
    with pytest.raises(ServiceError, match="batchsize"):
        read_batch_size("batchsize", value)


def test_user_defined_names() -> None:
    check_user_defined("hyperParams", {"layers": 3, "λ": 0.5, "kind": "a b"}, ["epoch"])
    for name in ("", "a\0", "epoch"):
        with pytest.raises(ServiceError, match="no hyperparameter has"):
            check_user_defined("hyperParams", {name: 1}, ["epoch"])
