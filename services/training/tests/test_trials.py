"""Trials through the whole service on real databases; only its peers are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from dlmesh.training.v1 import training_pb2, trials_pb2
from servicekit.database import Database
from servicekit.errors import invalid
from servicekit.identity import current_identity
from testkit.services import ALICE, BOB, acting_as, collect, running, settings_for
from training_fakes import DATASET, GROUP, MODEL, FakeDatasets, FakeJobs, FakeModels
from training_room import Room, ask, refused
from training_room import start as training
from training_service.domain.specs import TrainingSpec
from training_service.storage.removals import SqlRemovals
from training_service.usecases.ports import DatasetFacts, ModelFacts
from training_service.wiring import build
from trial_room import Value, active, check, delete, get, read, start, start_refused, stored
from workerkit.spool import append_metrics


class StrictModels(FakeModels):
    """Lets those see a model who may."""

    async def get(self, name: str) -> ModelFacts:
        model = await super().get(name)
        current_identity().require_access("model", name, model.owner)
        return model


class StrictDatasets(FakeDatasets):
    """All of them are Alice's."""

    async def get(self, name: str) -> DatasetFacts:
        current_identity().require_access("dataset", name, "alice")
        return await super().get(name)


@pytest.fixture
async def room(tmp_path: Path, database_url: str) -> AsyncIterator[Room]:
    code = tmp_path / "models" / MODEL.uid
    code.mkdir(parents=True)
    (code / "main.py").write_text("print('hello')")
    (code / "config.json").write_text('{"learningrate": "of the model"}')
    models, datasets, jobs = StrictModels(replace(MODEL, path=str(code))), StrictDatasets(), FakeJobs()
    settings = settings_for("training", tmp_path, database_url=database_url)
    async with running(build(settings, models=models, datasets=datasets, jobs=jobs), settings) as client:
        yield Room(client, settings, models, datasets, jobs)


async def until_gone(room: Room, trial_id: str) -> None:
    database = Database(room.settings.database_url, "training")

    async def gone() -> bool:
        return trial_id in room.jobs.deleted and not await SqlRemovals(database).pending()

    await room.until(gone)
    await database.close()


async def until_settled(room: Room, trial_id: str, status: str) -> trials_pb2.TrialMetrics:
    async def settled() -> trials_pb2.TrialMetrics | None:
        found = (await read(room, trial_id, wait_seconds=10.0))[trial_id]
        return found if found.is_settled else None

    found = await room.until(settled)
    assert (await stored(room, trial_id)).status == status
    return found


async def test_a_trial_from_its_check_to_its_deletion(room: Room, tmp_path: Path) -> None:
    values = {"learningrate": Value(number=0.1 + 0.2), "epoch": Value(whole=7), "batchsize": Value(text="16")}
    given = {"hyperparameters": values, "user_defined": {"layers": Value(whole=3), "kind": Value(text="wide")}}
    asked = {**given, "workers": 2, "max_seconds": 59.5, "model_uid": MODEL.uid}
    checked = await check(room, {"momentum": [Value(number=0.0), Value(number=0.9)]}, **asked)
    assert (checked.model_uid, checked.instance_group_id, checked.instance_group) == (MODEL.uid, GROUP.id, "local")
    assert list(checked.warnings) == []
    assert not (tmp_path / "trainings").exists()

    trial_id = await start(room, **asked)
    # Known when the start was answered: studies wait for its end from then on.
    job = room.jobs.requests[trial_id]
    assert (job.study, job.owner, job.kind, job.model, job.dataset) == ("s1", "alice", "training", *_names())
    assert (job.ranks, job.max_seconds, job.max_restarts) == (2, 60, 0)
    told = TrainingSpec.read(job.command[3])
    held = {"solvertype": "Adam", "epoch": 7, "learningrate": 0.1 + 0.2}
    assert (told.parameters["hyperparameter"], told.parameters["batch_size"]) == (held, 16)
    assert json.loads((Path(told.code) / "config.json").read_text()) == {
        **held,
        "batchsize": 16,
        "layers": 3,
        "kind": "wide",
    }
    assert (Path(room.models.known["digits"].path) / "config.json").read_text() == '{"learningrate": "of the model"}'
    assert await active(room) == {trial_id: "s1"}
    await check_that_it_is_in_no_list(room, trial_id)

    folder = tmp_path / "jobs" / trial_id / "attempt-1"
    folder.mkdir(parents=True)
    append_metrics(folder, {"test_loss": 0.25}, 3)
    room.jobs.move(trial_id, "FINISHED", run_directory=str(folder))
    settled = await until_settled(room, trial_id, "FINISHED")
    assert [(curve.series, *curve.steps, *curve.values) for curve in settled.curves] == [("test_loss", 3, 0.25)]
    assert await active(room) == {}
    facts = await get(room, trial_id)
    assert facts.batch_size == 16
    assert facts.hyperparameters["learningrate"] == Value(number=0.1 + 0.2)
    assert facts.hyperparameters["solvertype"] == Value(text="Adam")
    assert facts.user_defined["layers"] == Value(whole=3)

    await delete(room, trial_id, uuid4().hex)
    assert await read(room, trial_id) == {}
    assert (await refused(get(room, trial_id)))[0] is grpc.StatusCode.NOT_FOUND
    await until_gone(room, trial_id)
    assert not (tmp_path / "trainings" / trial_id).exists()
    code, message = await start_refused(room, trial_id, **asked)
    assert (code, message) == (grpc.StatusCode.NOT_FOUND, f"trial {trial_id} was deleted")


def _names() -> tuple[str, str]:
    return MODEL.name, DATASET.name


async def check_that_it_is_in_no_list(room: Room, trial_id: str) -> None:
    with acting_as(ALICE):
        listed = training_pb2.ListTrainingsRequest(model_name="digits")
        assert await collect(room.trainings.ListTrainings(listed)) == []
        for name in (trial_id, f"trial {trial_id}"):
            for call, kind in (
                (room.trainings.GetTraining, training_pb2.GetTrainingRequest),
                (room.trainings.StopTraining, training_pb2.StopTrainingRequest),
                (room.trainings.DeleteTraining, training_pb2.DeleteTrainingRequest),
            ):
                assert (await refused(call(ask(kind, name))))[0] is grpc.StatusCode.NOT_FOUND
            validation = training_pb2.StartValidationRequest(
                model_name="digits", name="v", training_name=name, metrics=["Top1"]
            )
            message = (await refused(room.validations.StartValidation(validation)))[1]
            assert message.startswith("trainName: ")
            assert "(none)" in message
        # A training may be called like its id, and is another one.
        await room.trainings.StartTraining(training(training_name=trial_id))
        other = await room.submitted(trial_id)
        assert other != trial_id
        room.jobs.move(other, "FINISHED")
        await room.settled("FINISHED", trial_id)
        await room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest, trial_id))


async def test_the_same_id_is_the_same_trial(room: Room) -> None:
    trial_id = uuid4().hex
    values = {"epoch": Value(whole=1)}
    await asyncio.gather(*(start(room, trial_id, hyperparameters=values) for _ in range(3)))
    await start(room, trial_id, hyperparameters={"epoch": Value(whole=2)}, study="another")
    assert list(room.jobs.requests) == [trial_id]
    assert (await get(room, trial_id)).hyperparameters["epoch"] == Value(whole=1)
    for wrong in ("A" * 32, "../../../../etc/passwd", f"{trial_id}0"):
        code, message = await start_refused(room, wrong)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("trial_id: ")


async def test_ids_of_trainings_are_no_trials(room: Room) -> None:
    await room.started()
    with acting_as(ALICE):
        uid = str((await room.training()).uid)
    code, message = await start_refused(room, uid)
    assert (code, "an id that is no training's" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert (await read(room, uid), (await refused(get(room, uid)))[0]) == ({}, grpc.StatusCode.NOT_FOUND)
    await delete(room, uid)
    with acting_as(ALICE):
        assert (await room.training()).status == "SUBMITTED"


async def test_trials_are_for_services_only(room: Room) -> None:
    trial_id = await start(room)
    with acting_as(ALICE):
        for call in (
            check(room),
            start(room),
            read(room, trial_id),
            get(room, trial_id),
            delete(room, trial_id),
            active(room),
        ):
            assert (await refused(call))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_what_the_owner_may_not_see_is_not_trained(room: Room) -> None:
    for call in (check, start):
        assert (await refused(call(room, owner="bob")))[0] is grpc.StatusCode.PERMISSION_DENIED
    await start(room, owner="Admin", owner_is_administrator=True)
    # Its own model, but another user's data.
    room.models.known["digits"] = replace(room.models.known["digits"], owner="bob")
    assert (await start_refused(room, owner="bob"))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert len(room.jobs.requests) == 1


async def test_a_deletion_ends_what_runs_and_forbids_what_never_came(room: Room, tmp_path: Path) -> None:
    trial_id, never = await start(room), uuid4().hex
    room.jobs.move(trial_id, "RUNNING")
    await delete(room, never, trial_id)
    await delete(room, trial_id)
    assert await read(room, trial_id) == {}
    assert (await start_refused(room, never))[0] is grpc.StatusCode.NOT_FOUND
    assert (await start_refused(room, trial_id))[0] is grpc.StatusCode.NOT_FOUND
    # It keeps its model and data in use until it has ended.
    assert await active(room) == {trial_id: "s1"}
    await room.until(lambda: asyncio.sleep(0, trial_id in room.jobs.stopped))
    assert room.jobs.deleted == []
    room.jobs.move(trial_id, "KILLED", reason="stopped")
    await until_gone(room, trial_id)
    assert not (tmp_path / "trainings" / trial_id).exists()
    assert list(room.jobs.requests) == [trial_id]


async def test_a_trial_waits_for_the_scheduling_service(room: Room) -> None:
    room.jobs.is_away = True
    trial_id, deleted = uuid4().hex, uuid4().hex
    for one in (trial_id, deleted):
        code, message = await start_refused(room, one)
        assert (code, one in message) == (grpc.StatusCode.UNAVAILABLE, True)
    await delete(room, deleted)
    # Two calls a pass: the next pass has seen the deletion.
    unanswered = room.jobs.unanswered
    await room.until(lambda: asyncio.sleep(0, room.jobs.unanswered >= unanswered + 4))
    room.jobs.is_away = False
    assert await start(room, trial_id) == trial_id
    assert list(room.jobs.requests) == [trial_id]
    await until_gone(room, deleted)


async def test_a_trial_that_was_cut_off_before_its_job_is_submitted(room: Room, tmp_path: Path) -> None:
    room.jobs.is_away = True
    trial_id = uuid4().hex
    await start_refused(room, trial_id)
    jobs = FakeJobs()
    settings = replace(room.settings, address="127.0.0.1:0")
    application = build(settings, models=room.models, datasets=room.datasets, jobs=jobs)
    async with running(application, settings) as client:
        after = Room(client, settings, room.models, room.datasets, jobs)
        await after.until(lambda: asyncio.sleep(0, trial_id in jobs.requests))
        assert await start(after, trial_id) == trial_id
        jobs.move(trial_id, "FINISHED")
        await until_settled(after, trial_id, "FINISHED")


async def test_what_can_never_run_is_refused_and_has_no_job(room: Room) -> None:
    room.jobs.refusal = invalid("clusterSize", 1, "0, the quota of alice")
    trial_id = uuid4().hex
    for _ in range(2):
        code, message = await start_refused(room, trial_id)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("resDef.workerNum: 1 is not valid")
    found = (await read(room, trial_id))[trial_id]
    assert (found.is_settled, (await stored(room, trial_id)).status) == (True, "FAILED")
    await delete(room, trial_id)
    await until_gone(room, trial_id)
    room.jobs.refusal = None
    with acting_as(BOB):
        room.models.known["digits"] = replace(room.models.known["digits"], path="/nowhere", framework="Caffe")
    code, message = await start_refused(room)
    assert (code, "cannot prepare" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert not room.jobs.requests


async def test_trials_are_of_one_model_and_not_of_its_name(room: Room) -> None:
    trial_id = await start(room)
    model = room.models.known["digits"]
    room.models.known["digits"] = replace(model, uid="model-2")
    code, message = await start_refused(room, model_uid=model.uid)
    assert (code, "another one has its name" in message) == (grpc.StatusCode.NOT_FOUND, True)
    assert await active(room) == {}
    # What is known already is asked for again without its model.
    assert await start(room, trial_id, model_uid=model.uid) == trial_id
    del room.models.known["digits"]
    assert (await refused(active(room)))[0] is grpc.StatusCode.NOT_FOUND
