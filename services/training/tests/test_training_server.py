"""The whole service over gRPC on a real database; only its peers are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from dlmesh.training.v1 import metrics_pb2, metrics_pb2_grpc, training_pb2, training_pb2_grpc
from servicekit.database import Database
from servicekit.errors import invalid
from servicekit.identity import acting_as
from servicekit.settings import ServiceSettings
from testkit.services import ADMIN, ALICE, BOB, Client, collect, running, settings_for
from training_fakes import DATASET, MODEL, FakeDatasets, FakeJobs, FakeModels
from training_service.storage.metrics import SqlMetrics
from training_service.storage.tables import TrainingRow
from training_service.wiring import build
from workerkit.spool import append_metrics

Start = training_pb2.StartTrainingRequest


@dataclass
class Room:
    """The running service and its played peers."""

    client: Client
    settings: ServiceSettings
    models: FakeModels
    datasets: FakeDatasets
    jobs: FakeJobs

    @property
    def trainings(self) -> Any:
        return self.client.stub(training_pb2_grpc.TrainingServiceStub)

    @property
    def validations(self) -> Any:
        return self.client.stub(training_pb2_grpc.ValidationServiceStub)

    @property
    def metrics(self) -> Any:
        return self.client.stub(metrics_pb2_grpc.MetricServiceStub)

    async def training(self, name: str = "first") -> Any:
        return (await self.trainings.GetTraining(ask(training_pb2.GetTrainingRequest, name))).parameters

    async def validation(self, name: str = "check") -> Any:
        found = await collect(
            self.validations.ListValidations(training_pb2.ListValidationsRequest(model_name="digits"))
        )
        return next(one for one in found if one.parameters.name == name)

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Poll until `condition` (a coroutine function) gives something true."""
        async with asyncio.timeout(10):
            while not (found := await condition()):
                await asyncio.sleep(0.02)
            return found

    async def started(self, name: str = "first", **fields: Any) -> str:
        """Start a training as Alice and wait until its job is submitted; the job's id."""
        with acting_as(ALICE):
            await self.trainings.StartTraining(start(training_name=name, **fields))
            job_id = (await self.training(name)).application_id

        async def submitted() -> bool:
            return job_id in self.jobs.requests

        await self.until(submitted)
        return job_id

    async def settled(self, status: str, name: str = "first") -> Any:
        async def reached() -> Any:
            training = await self.training(name)
            return training if training.status == status else None

        return await self.until(reached)

    async def finished(self, name: str = "first") -> Any:
        self.jobs.move(await self.started(name), "FINISHED")
        return await self.settled("FINISHED", name)


def ask(kind: Any, name: str = "first") -> Any:
    return kind(model_name="digits", name=name)


def start(**fields: Any) -> Any:
    return Start(
        **{"model_name": "digits", "training_name": "first", "framework": "PyTorch", "cluster_size": 2, **fields}
    )


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    code = tmp_path / "models" / MODEL.uid
    code.mkdir(parents=True)
    (code / "main.py").write_text("print('hello')")
    models, datasets, jobs = FakeModels(replace(MODEL, path=str(code))), FakeDatasets(), FakeJobs()
    settings = settings_for("training", tmp_path)
    async with running(build(settings, models=models, datasets=datasets, jobs=jobs), settings) as client:
        yield Room(client, settings, models, datasets, jobs)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_training_from_start_to_finish(room: Room) -> None:
    job_id = await room.started(test_interval=7)
    asked = room.jobs.requests[job_id]
    assert (asked.kind, asked.ranks, asked.owner, asked.max_restarts) == ("training", 2, "alice", 2)
    assert (asked.model, asked.dataset, asked.gpus_per_rank) == ("digits", "digits-data", 0)
    assert list(asked.command[:3]) == ["python", "-m", "training_service.worker.run_training"]
    code = Path(asked.command[3]).parent / "code"
    assert (code / "main.py").read_text() == "print('hello')"

    with acting_as(ALICE):
        await room.until(lambda: waits(room))
        detail = await room.trainings.GetTraining(ask(training_pb2.GetTrainingRequest))
        assert (detail.model, detail.dataset) == ("digits", "digits-data")
        parameters = detail.parameters
        assert (parameters.status, parameters.status_message) == ("SUBMITTED", "waiting for 2 slots")
        assert (parameters.test_interval, parameters.test_iterations, parameters.sync_mode) == (7, 10, "SYNC")
        assert (parameters.instance_group_name, parameters.owner, parameters.cluster_size) == ("local", "alice", 2)
        room.jobs.move(job_id, "RUNNING", reason="", done=30, total=100)
        assert (await room.settled("RUNNING")).progress == 30
        code_, _ = await refused(room.trainings.GetTrainingWeightFile(ask(training_pb2.GetTrainingWeightFileRequest)))
        assert code_ is grpc.StatusCode.NOT_FOUND
        for weights in ("model_epoch_2.pth", "model_epoch_10.pth"):
            (Path(parameters.path) / weights).touch()
        file = await room.trainings.GetTrainingWeightFile(ask(training_pb2.GetTrainingWeightFileRequest))
        assert file.value == "model_epoch_10.pth"
        (Path(parameters.path) / "model_epoch_final.pth").touch()
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
    ({"weights_url": "http://x/y", "weights_folder": "f"}, grpc.StatusCode.INVALID_ARGUMENT, "wtURL.*not together"),
    ({"command": "python 'other.py"}, grpc.StatusCode.INVALID_ARGUMENT, "cmd.*closed quotes"),
    ({"command": "  "}, grpc.StatusCode.INVALID_ARGUMENT, "cmd"),
    ({"checkpoint_interval": -1}, grpc.StatusCode.INVALID_ARGUMENT, "checkpointInterval: -1"),
    ({"checkpoints_kept": -1}, grpc.StatusCode.INVALID_ARGUMENT, "checkpointsKept: -1"),
    ({"max_restarts": 101}, grpc.StatusCode.INVALID_ARGUMENT, "maxRestarts: 101.*0 to 100"),
    ({"max_silent_seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT, "maxSilentSeconds: -1"),
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
    ("model", "dataset", "code", "message"),
    [
        ({"type": "Inference"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "modelname.*inference only"),
        ({"accelerator": "Single"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "clusterSize: 2.*Single"),
        ({"framework": "Caffe"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dlFramework.*Caffe"),
        ({"dataset": ""}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dataset"),
        ({"dataset": "gone"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "dataset: 'gone'"),
        ({"instance_group": "moon"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "sig of the model: sigid: .*local"),
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


async def test_points_that_were_not_delivered_are_read_when_the_job_ends(room: Room, tmp_path: Path) -> None:
    job_id = await room.started()
    for attempt, steps in ((1, (1, 2)), (2, (2, 3))):
        directory = tmp_path / "jobs" / job_id / f"attempt-{attempt}"
        directory.mkdir(parents=True)
        for step in steps:
            append_metrics(directory, {"train_loss": attempt / 10}, step)
    room.jobs.move(job_id, "FINISHED", run_directory=str(directory))
    await room.settled("FINISHED")
    database = Database(room.settings.database_url, "training")
    curve = await SqlMetrics(database).read(job_id, ["train_loss"])
    await database.close()
    assert [(point.step, point.attempt, point.value) for point in curve] == [(1, 1, 0.1), (2, 2, 0.2), (3, 2, 0.2)]


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
    assert not Path(stopped.path).exists()
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
        await room.trainings.StartTraining(start())
    assert "cannot prepare" in (await room.settled("FAILED")).status_message


async def test_a_restarted_service_goes_on(tmp_path: Path) -> None:
    code = tmp_path / "models" / MODEL.uid
    code.mkdir(parents=True)
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
    room.jobs.move(job_id, "FINISHED", result={"pairs": [{"name": "Top1", "value": "0.975"}]})

    async def finished() -> bool:
        return (await room.validation()).status == "FINISHED"

    await room.until(finished)
    detail = await room.validation()
    assert (detail.model_name, detail.dataset, detail.progress) == ("digits", "digits-data", 100)
    assert list(detail.parameters.metrics) == ["Top1", "ConfusionMatrix"]
    assert [(pair.name, pair.value) for pair in detail.results] == [("Top1", "0.975")]
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
    ],
)
async def test_a_bad_validation_request_names_what_is_wrong(room: Room, fields: dict[str, Any], message: str) -> None:
    await room.finished()
    body = {"model_name": "digits", "name": "check", "training_name": "first", "metrics": ["Top1"], **fields}
    with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await room.validations.StartValidation(training_pb2.StartValidationRequest(**body))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_a_finished_training_can_be_validated(room: Room) -> None:
    await room.started()
    asked_for = training_pb2.StartValidationRequest(
        model_name="digits", name="check", training_name="first", metrics=["Top1"]
    )
    with acting_as(ALICE):
        code, message = await refused(room.validations.StartValidation(asked_for))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "this one is SUBMITTED" in message


async def test_runs_of_a_deleted_model_are_invisible(room: Room) -> None:
    await room.finished()
    # Deleted and made again under its name: another model.
    room.models.known["digits"] = replace(room.models.known["digits"], uid="model-2")
    assert await collect(room.trainings.ListTrainings(training_pb2.ListTrainingsRequest(model_name="digits"))) == []
    with acting_as(ALICE):
        await room.trainings.StartTraining(start())


async def test_metrics_are_kept_once_and_only_from_their_own_job(room: Room) -> None:
    def points(*steps: int, value: float = 0.5) -> Any:
        return metrics_pb2.RecordMetricsRequest(
            job_id="j1",
            attempt=1,
            points=[metrics_pb2.MetricPoint(series="train_loss", step=step, value=value, time=1.0) for step in steps],
        )

    assert (await room.metrics.RecordMetrics(points(1, 2))).recorded == 2
    assert (await room.metrics.RecordMetrics(points(2, 3))).recorded == 1
    assert (await room.metrics.RecordMetrics(points(4, value=float("nan")))).recorded == 0
    with acting_as(ALICE):
        assert (await refused(room.metrics.RecordMetrics(points(5))))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert (await refused(room.metrics.RecordMetrics(points(-1))))[0] is grpc.StatusCode.INVALID_ARGUMENT
