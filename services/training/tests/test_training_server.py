"""Trainings of the whole service over gRPC on a real database; only its peers are played."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from dlmesh.training.v1 import training_pb2
from servicekit.database import Database
from servicekit.errors import invalid
from servicekit.identity import acting_as
from testkit.services import ADMIN, ALICE, BOB, collect, running, settings_for
from training_fakes import DATASET, MODEL, FakeDatasets, FakeJobs, FakeModels
from training_room import Room, ask, refused, start
from training_service.domain.specs import TrainingSpec
from training_service.storage.tables import TrainingRow
from training_service.wiring import build


async def test_a_training_from_start_to_finish(room: Room) -> None:
    job_id = await room.started(test_interval=7, priority=-3, max_seconds=3600)
    asked = room.jobs.requests[job_id]
    assert (asked.kind, asked.ranks, asked.owner, asked.max_restarts) == ("training", 2, "alice", 2)
    assert (asked.model, asked.dataset, asked.gpus_per_rank) == ("digits", "digits-data", 0)
    assert (asked.max_silent_seconds, asked.max_disk_bytes, asked.grace_seconds) == (1800, 100 << 30, 8)
    assert list(asked.command[:3]) == ["python", "-m", "training_service.worker.run_training"]
    assert (asked.priority, asked.max_seconds) == (-3, 3600)
    code = Path(asked.command[3]).parent / "code"
    assert (code / "main.py").read_text() == "print('hello')"

    with acting_as(ALICE):
        await room.until(lambda: waits(room))
        detail = await room.trainings.GetTraining(ask(training_pb2.GetTrainingRequest))
        assert (detail.model, detail.dataset) == ("digits", "digits-data")
        parameters = detail.parameters
        assert (parameters.priority, parameters.max_seconds) == (-3, 3600)
        assert (parameters.status, parameters.status_message) == ("SUBMITTED", "waiting for 2 slots")
        assert (parameters.test_interval, parameters.test_iterations, parameters.sync_mode) == (7, 10, "SYNC")
        assert (parameters.instance_group_name, parameters.owner, parameters.cluster_size) == ("local", "alice", 2)
        room.jobs.move(job_id, "RUNNING", reason="", done=30, total=100)
        assert (await room.settled("RUNNING")).progress == 30
        code_, _ = await refused(room.trainings.GetTrainingWeightFile(ask(training_pb2.GetTrainingWeightFileRequest)))
        assert code_ is grpc.StatusCode.NOT_FOUND
        for weights in ("model_epoch_2.pth", "model_epoch_10.pth"):
            (Path(parameters.path) / weights).write_bytes(b"w")
        file = await room.trainings.GetTrainingWeightFile(ask(training_pb2.GetTrainingWeightFileRequest))
        assert file.value == "model_epoch_10.pth"
        (Path(parameters.path) / "model_epoch_final.pth").write_bytes(b"w")
        room.jobs.move(job_id, "FINISHED")
        assert (await room.settled("FINISHED")).progress == 100
        file = await room.trainings.GetTrainingWeightFile(ask(training_pb2.GetTrainingWeightFileRequest))
        assert file.value == "model_epoch_final.pth"
        # Stopping what has ended changes nothing.
        await room.trainings.StopTraining(ask(training_pb2.StopTrainingRequest))
        assert (await room.training()).status == "FINISHED"
        names = await collect(
            room.trainings.ListTrainingNames(training_pb2.ListTrainingNamesRequest(model_name="digits"))
        )
        assert [name.value for name in names] == ["first"]


async def waits(room: Room) -> bool:
    return bool((await room.training()).status_message)


INVALID: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"training_name": "a b"}, grpc.StatusCode.INVALID_ARGUMENT, "trainName"),
    ({"training_name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "trainName"),
    ({"framework": "TensorFlow"}, grpc.StatusCode.INVALID_ARGUMENT, "dlFramework: 'TensorFlow'.*PyTorch"),
    ({"cluster_size": 0}, grpc.StatusCode.INVALID_ARGUMENT, "clusterSize: 0"),
    ({"cluster_size": 3}, grpc.StatusCode.INVALID_ARGUMENT, "clusterSize: 3.*1 to 2, the slots of local"),
    ({"test_interval": -1}, grpc.StatusCode.INVALID_ARGUMENT, "testInterval: -1"),
    ({"test_iterations": -1}, grpc.StatusCode.INVALID_ARGUMENT, "testIteration: -1"),
    ({"gpu_percentage": -1}, grpc.StatusCode.INVALID_ARGUMENT, "gpuRatio: -1"),
    ({"sync_mode": "ASYNCH"}, grpc.StatusCode.INVALID_ARGUMENT, "syncMode.*SYNC, ASYNC"),
    ({"sync_mode": "async"}, grpc.StatusCode.INVALID_ARGUMENT, "syncMode: 'async'.*not Elastic"),
    ({"min_workers": 1}, grpc.StatusCode.INVALID_ARGUMENT, "minWorkers: 1.*not Elastic"),
    ({"min_workers": 3}, grpc.StatusCode.INVALID_ARGUMENT, "minWorkers: 3.*0 to 2"),
    ({"weights_url": "ftp://x/y"}, grpc.StatusCode.INVALID_ARGUMENT, "wtURL.*http"),
    *(
        ({"weights_url": address}, grpc.StatusCode.INVALID_ARGUMENT, "wtURL.*without spaces")
        for address in ("http://", "http://[", "http://a b/c", "http://x:99999/", "http://x/\0", "http://" + "x" * 9000)
    ),
    ({"initial_weights": "a", "weights_folder": "b"}, grpc.StatusCode.INVALID_ARGUMENT, "wtfolder.*not together"),
    ({"weights_url": "http://x/y", "weights_folder": "f"}, grpc.StatusCode.INVALID_ARGUMENT, "wtURL.*not together"),
    ({"command": "python 'other.py"}, grpc.StatusCode.INVALID_ARGUMENT, "cmd.*closed quotes"),
    ({"command": "  "}, grpc.StatusCode.INVALID_ARGUMENT, "cmd"),
    *(
        ({"command": command}, grpc.StatusCode.INVALID_ARGUMENT, f"cmd.* without {re.escape(word)}, .*bash -c")
        for command, word in (
            ("python main.py && echo x", "&&"),
            ("python main.py || true", "||"),
            ("python main.py | tee log", "|"),
            ("python main.py ; echo x", ";"),
            ("python main.py; echo x", "main.py;"),
            ("python main.py &", "&"),
            ("python main.py > log", ">"),
            ("python main.py >> log", ">>"),
            ("python main.py < in", "<"),
            ("python main.py <<< in", "<<<"),
            ("python main.py 2> log", "2>"),
            ("python main.py 2>&1", "2>&1"),
            ("python main.py &>log", "&>log"),
            ("python main.py --workers $(nproc)", "$(nproc)"),
            ("python main.py --workers `nproc`", "`nproc`"),
        )
    ),
    ({"command": "EPOCHS=3 python main.py"}, grpc.StatusCode.INVALID_ARGUMENT, "cmd.* not EPOCHS=3 before it.*bash -c"),
    ({"checkpoint_interval": -1}, grpc.StatusCode.INVALID_ARGUMENT, "checkpointInterval: -1"),
    ({"checkpoints_kept": -1}, grpc.StatusCode.INVALID_ARGUMENT, "checkpointsKept: -1"),
    ({"max_restarts": 101}, grpc.StatusCode.INVALID_ARGUMENT, "maxRestarts: 101.*0 to 100"),
    ({"max_silent_seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT, "maxSilentSeconds: -1"),
    ({"priority": 101}, grpc.StatusCode.INVALID_ARGUMENT, "priority: 101.*-100 to 100"),
    ({"max_seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT, "maxSeconds: -1.*0 to 315360000"),
    ({"gpu_percentage": 101}, grpc.StatusCode.INVALID_ARGUMENT, "gpuRatio: 101.*0 to 100"),
    ({"initial_weights": "/etc/passwd"}, grpc.StatusCode.INVALID_ARGUMENT, "wfinit"),
    ({"weights_folder": "../../etc"}, grpc.StatusCode.INVALID_ARGUMENT, "wtfolder"),
    ({"weights_folder": "none"}, grpc.StatusCode.INVALID_ARGUMENT, "wtfolder"),
    ({"model_name": "letters"}, grpc.StatusCode.NOT_FOUND, "letters"),
]


@pytest.mark.parametrize(("fields", "code", "message"), INVALID)
async def test_a_bad_request_names_what_is_wrong(
    room: Room, fields: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await room.trainings.StartTraining(start(**fields))
    assert caught.value.code() is code
    assert not room.jobs.requests


@pytest.mark.parametrize(
    "command",
    [
        "bash -c 'python main.py && echo x > log'",
        "python main.py --separator '|' --other ';' \\&",
        "python main.py --separator=; --token <pad> --address http://x/?a=1&b=2 ->",
        "env EPOCHS=3 python main.py --rate=$RATE",
        "python main.py 'it costs $(nothing)' {}",
    ],
)
async def test_what_is_quoted_or_means_nothing_to_a_shell_is_an_argument(room: Room, command: str) -> None:
    await room.started(command=command)
    assert (await room.training()).command == command


@pytest.mark.parametrize(
    ("model", "files", "missing"),
    [
        ({"accelerator": "Native"}, ["elastic-main.py"], "main.py"),
        ({"accelerator": "Elastic"}, ["train.py"], "elastic-main.py or main.py"),
        ({"accelerator": "Native", "framework": "Caffe"}, ["solver.prototxt"], ""),
        ({"accelerator": "Elastic"}, ["elastic-main.py"], ""),
        # It may be a FabricModel program, too.
        ({"accelerator": "Elastic"}, ["main.py"], ""),
    ],
)
async def test_a_model_has_the_program_that_its_accelerator_starts(
    room: Room, tmp_path: Path, model: dict[str, Any], files: list[str], missing: str
) -> None:
    code = tmp_path / "other"
    code.mkdir()
    for file in files:
        (code / file).touch()
    room.models.known["digits"] = replace(MODEL, path=str(code), **model)
    framework = model.get("framework", "PyTorch")
    if missing:
        with acting_as(ALICE):
            answer, message = await refused(room.trainings.StartTraining(start(framework=framework)))
        assert answer is grpc.StatusCode.INVALID_ARGUMENT
        assert re.match(rf"modelname: 'digits' .* a model with a {missing}, which the accelerator", message), message
        assert not room.jobs.requests
    await room.started(framework=framework, command="python mine.py" if missing else "")


async def test_a_net_of_caffe_has_a_fixed_number_of_workers(room: Room, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    room.models.known["digits"] = replace(MODEL, path=str(tmp_path / "code"), accelerator="Elastic", framework="Caffe")
    with acting_as(ALICE):
        answer, message = await refused(room.trainings.StartTraining(start(framework="Caffe")))
    assert answer is grpc.StatusCode.INVALID_ARGUMENT
    assert re.match(r"accelerator of model 'digits': 'Elastic'.*Single or Native", message), message
    # A program of one's own may do as it likes.
    await room.started(framework="Caffe", command="python mine.py")


@pytest.mark.parametrize(
    ("model", "dataset", "code", "message"),
    [
        ({"type": "Inference"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "modelname.*inference only"),
        ({"accelerator": "Single"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "clusterSize: 2.*Single"),
        ({"framework": "Caffe"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dlFramework.*Caffe"),
        ({"dataset": ""}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dataset"),
        ({"dataset": "gone"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dataset: 'gone'"),
        ({"instance_group": "moon"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "sig of the model: 'moon' is .*local"),
        ({}, {"status": "RUNNING"}, grpc.StatusCode.INVALID_ARGUMENT, "dataset.*this one is RUNNING"),
        ({}, {"splits": {"train": "/d/train"}}, grpc.StatusCode.INVALID_ARGUMENT, "dataset.*has no test"),
    ],
)
async def test_the_model_and_its_dataset_must_fit(
    room: Room, model: dict[str, Any], dataset: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    room.models.known["digits"] = replace(MODEL, **model)
    room.datasets.known["digits-data"] = replace(DATASET, **dataset)
    with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await room.trainings.StartTraining(start())
    assert caught.value.code() is code


@pytest.mark.parametrize(
    ("accelerator", "fields", "outcome"),
    [
        ("Native", {}, "clusterSize: 2.*1 to 1, what the GPUs of local hold"),
        ("Native", {"gpu_percentage": 60}, "clusterSize: 2.*1 to 1"),
        ("Native", {"gpu_percentage": 50}, 2),
        ("Elastic", {"cluster_size": 5}, 1),
        ("Elastic", {"cluster_size": 5, "gpu_percentage": 50}, 2),
    ],
)
async def test_ranks_fit_on_the_gpus_of_the_group(
    room: Room, accelerator: str, fields: dict[str, Any], outcome: str | int
) -> None:
    room.jobs.group = replace(room.jobs.group, gpus=1)
    room.models.known["digits"] = replace(MODEL, accelerator=accelerator, path=room.models.known["digits"].path)
    if accelerator == "Elastic":
        (Path(room.models.known["digits"].path) / "elastic-main.py").write_text("print('hello')")
    if isinstance(outcome, str):
        with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=outcome):
            await room.trainings.StartTraining(start(**fields))
    else:
        asked = room.jobs.requests[await room.started(**fields)]
        assert (asked.ranks, asked.gpus_per_rank) == (outcome, 1)
        # What an elastic program is told to plan with.
        told = TrainingSpec.read(asked.command[3]).max_workers
        assert told == (outcome if accelerator == "Elastic" else 0)


async def test_initial_weights_are_uploads_or_inside_the_data_roots(room: Room) -> None:
    home = room.settings.home
    (home / "data" / "old").mkdir()
    (home / "data" / "old" / "w.pth").touch()
    (home / "weights" / "alice").mkdir(parents=True)
    (home / "weights" / "alice" / "mine.pth").touch()
    with acting_as(ALICE):
        await room.trainings.StartTraining(start(training_name="a", initial_weights="old/w.pth"))
        await room.trainings.StartTraining(start(training_name="b", weights_folder=str(home / "data" / "old")))
        await room.trainings.StartTraining(start(training_name="c", initial_weights="mine.pth"))
        assert (await room.training("a")).initial_weights == str(home / "data" / "old" / "w.pth")
        assert (await room.training("b")).weights_folder == str(home / "data" / "old")
        assert (await room.training("c")).initial_weights == str(home / "weights" / "alice" / "mine.pth")
        assert (await refused(room.trainings.StartTraining(start(training_name="d", initial_weights="old"))))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
    with acting_as(BOB):
        code, _ = await refused(room.trainings.StartTraining(start(training_name="e", initial_weights="mine.pth")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_weights_of_a_training_are_for_who_may_see_it(room: Room) -> None:
    await room.started()
    with acting_as(ALICE):
        folder = Path((await room.training()).path)
        await room.trainings.StartTraining(start(training_name="next", weights_folder=str(folder)))
    for place in (folder.parents[1], folder.parents[1] / "gone" / "checkpoints"):
        place.mkdir(parents=True, exist_ok=True)
        with acting_as(ADMIN):
            wrong = start(training_name="no", weights_folder=str(place))
            assert (await refused(room.trainings.StartTraining(wrong)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    with acting_as(BOB):
        theirs = start(training_name="theirs", weights_folder=str(folder))
        assert (await refused(room.trainings.StartTraining(theirs)))[0] is grpc.StatusCode.PERMISSION_DENIED
        # Nor by way of a model that names them.
        room.models.known["digits"] = replace(room.models.known["digits"], weights_folder=str(folder), owner="bob")
        theirs = start(training_name="theirs")
        assert (await refused(room.trainings.StartTraining(theirs)))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_weights_of_the_model_are_those_of_its_owner(room: Room) -> None:
    uploads = room.settings.home / "weights" / "alice"
    uploads.mkdir(parents=True)
    (uploads / "mine.pth").touch()
    room.models.known["digits"] = replace(room.models.known["digits"], initial_weights=str(uploads / "mine.pth"))
    with acting_as(ADMIN):
        await room.trainings.StartTraining(start(training_name="a"))
        assert (await room.training("a")).initial_weights == str(uploads / "mine.pth")
        (uploads / "mine.pth").unlink()
        code, message = await refused(room.trainings.StartTraining(start(training_name="b")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "wfinit of the model" in message


async def test_names_are_unique_within_a_model(room: Room) -> None:
    await room.started()
    with acting_as(ALICE):
        code, message = await refused(room.trainings.StartTraining(start()))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "first" in message


async def test_other_users_see_nothing(room: Room) -> None:
    await room.started()
    everything = training_pb2.ListTrainingsRequest(model_name="digits")
    with acting_as(BOB):
        assert await collect(room.trainings.ListTrainings(everything)) == []
        for call, kind in (
            (room.trainings.GetTraining, training_pb2.GetTrainingRequest),
            (room.trainings.StopTraining, training_pb2.StopTrainingRequest),
            (room.trainings.DeleteTraining, training_pb2.DeleteTrainingRequest),
        ):
            assert (await refused(call(ask(kind))))[0] is grpc.StatusCode.PERMISSION_DENIED
    with acting_as(ADMIN):
        assert len(await collect(room.trainings.ListTrainings(everything))) == 1
        code, _ = await refused(room.trainings.GetTraining(ask(training_pb2.GetTrainingRequest, "none")))
        assert code is grpc.StatusCode.NOT_FOUND


async def test_a_crash_shows_the_last_log_lines(room: Room) -> None:
    job_id = await room.started()
    room.jobs.move(job_id, "ERROR", reason="rank 1 exited with 1 (attempt 3 of 3)", log_tail="ValueError: bad\n")
    failed = await room.settled("FAILED")
    assert failed.status_message == "rank 1 exited with 1 (attempt 3 of 3)\nValueError: bad"


async def test_stop_and_delete(room: Room) -> None:
    job_id = await room.started()
    with acting_as(ALICE):
        code, message = await refused(room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest)))
        assert code is grpc.StatusCode.ABORTED
        assert "stop it first" in message
        await room.trainings.StopTraining(ask(training_pb2.StopTrainingRequest))

        async def told() -> bool:
            return job_id in room.jobs.stopped

        await room.until(told)
        room.jobs.move(job_id, "KILLED", reason="stopped by alice")
        stopped = await room.settled("STOPPED")
        assert Path(stopped.path).exists()
        await room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest))
        code, _ = await refused(room.trainings.GetTraining(ask(training_pb2.GetTrainingRequest)))
    assert code is grpc.StatusCode.NOT_FOUND
    # The job first: nothing may write any more when the files go.
    await room.until(lambda: asyncio.sleep(0, not Path(stopped.path).exists()))
    assert room.jobs.deleted == [job_id]
    assert room.jobs.stopped == [job_id]


async def test_nothing_is_lost_while_the_scheduling_service_is_away(room: Room) -> None:
    room.jobs.is_away = True
    with acting_as(ALICE):
        await room.trainings.StartTraining(start())
        assert (await room.training()).status == "SUBMITTED"
        await room.trainings.StartTraining(start(training_name="second"))
        await room.trainings.StopTraining(ask(training_pb2.StopTrainingRequest, "second"))
    # Two calls a pass: the next pass has seen the stop.
    unanswered = room.jobs.unanswered
    await room.until(lambda: asyncio.sleep(0, room.jobs.unanswered >= unanswered + 4))
    room.jobs.is_away = False
    job_id = (await room.training()).application_id

    async def submitted() -> bool:
        return job_id in room.jobs.requests

    await room.until(submitted)
    room.jobs.move(job_id, "FINISHED")
    await room.settled("FINISHED")
    # Stopped before its job ever existed.
    await room.settled("STOPPED", "second")
    assert len(room.jobs.requests) == 1


async def test_a_job_that_can_never_run_fails_with_the_reason(room: Room) -> None:
    room.jobs.refusal = invalid("ranks", 2, "1")
    with acting_as(ALICE):
        await room.trainings.StartTraining(start())
    assert "ranks: 2 is not valid" in (await room.settled("FAILED")).status_message


async def test_a_model_whose_files_have_gone_fails(room: Room, tmp_path: Path) -> None:
    room.models.known["digits"] = replace(MODEL, path=str(tmp_path / "nowhere"))
    with acting_as(ALICE):
        await room.trainings.StartTraining(start(command="python mine.py"))
    assert "cannot prepare" in (await room.settled("FAILED")).status_message


async def test_a_restarted_service_goes_on(tmp_path: Path) -> None:
    code = tmp_path / "models" / MODEL.uid
    code.mkdir(parents=True)
    (code / "main.py").touch()
    models, jobs = FakeModels(replace(MODEL, path=str(code))), FakeJobs()
    settings = settings_for("training", tmp_path)
    async with running(build(settings, models=models, datasets=FakeDatasets(), jobs=jobs), settings) as client:
        before = Room(client, settings, models, FakeDatasets(), jobs)
        job_id = await before.started()
    # Submitted, but killed before it could write that down: the same id is submitted again.
    database = Database(settings.database_url, "training")
    async with database.session() as session:
        await session.execute(sa.update(TrainingRow).values(accepted=False))
    await database.close()
    jobs.move(job_id, "RUNNING", done=1, total=2)
    async with running(build(settings, models=models, datasets=FakeDatasets(), jobs=jobs), settings) as client:
        after = Room(client, settings, models, FakeDatasets(), jobs)
        assert (await after.settled("RUNNING")).progress == 50
        jobs.move(job_id, "FINISHED")
        await after.settled("FINISHED")
    assert (list(jobs.requests), jobs.submissions) == ([job_id], 2)


async def test_runs_of_a_deleted_model_are_invisible(room: Room) -> None:
    await room.finished()
    # Deleted and made again under its name: another model.
    room.models.known["digits"] = replace(room.models.known["digits"], uid="model-2")
    assert await collect(room.trainings.ListTrainings(training_pb2.ListTrainingsRequest(model_name="digits"))) == []
    with acting_as(ALICE):
        await room.trainings.StartTraining(start())
