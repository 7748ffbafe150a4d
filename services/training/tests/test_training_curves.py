"""Curves of the whole service over gRPC on a real database; only its peers are played."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import metrics_pb2, training_pb2
from servicekit.identity import Identity, acting_as
from testkit.services import ADMIN, ALICE, BOB, collect
from training_fakes import MODEL
from training_room import Room, ask, refused
from training_service.storage.metrics import SqlMetrics
from workerkit.spool import append_metrics


async def test_points_that_were_not_delivered_are_read_when_the_job_ends(room: Room, tmp_path: Path) -> None:
    job_id = await room.started()
    for attempt, steps in ((1, (1, 2)), (2, (2, 3))):
        directory = tmp_path / "jobs" / job_id / f"attempt-{attempt}"
        directory.mkdir(parents=True)
        for step in steps:
            append_metrics(directory, {"train_loss": attempt / 10}, step)
    room.jobs.move(job_id, "FINISHED", run_directory=str(directory))
    await room.settled("FINISHED")
    with acting_as(ALICE):
        curve = await collect(room.trainings.ReadTrainingMetrics(curves()))
    assert [(point.step, point.attempt, point.value) for point in curve] == [(1, 1, 0.1), (2, 2, 0.2), (3, 2, 0.2)]


def curves(name: str = "first", **fields: Any) -> Any:
    return training_pb2.ReadTrainingMetricsRequest(model_name="digits", name=name, **fields)


async def record(room: Room, job_id: str, steps: range, series: str = "train_loss", attempt: int = 1) -> None:
    made = [metrics_pb2.MetricPoint(series=series, step=step, value=step / 2, time=1.5 * step) for step in steps]
    with acting_as(Identity.service("scheduling")):
        await room.metrics.RecordMetrics(metrics_pb2.RecordMetricsRequest(job_id=job_id, attempt=attempt, points=made))


async def test_curves_are_read_whole_thinned_or_in_part(room: Room) -> None:
    job_id = await room.started()
    await record(room, job_id, range(1, 1501))
    await record(room, job_id, range(100, 1501, 100), "test_loss")
    await record(room, job_id, range(1500, 1502), attempt=2)

    async def read(**fields: Any) -> dict[str, list[int]]:
        steps: dict[str, list[int]] = {}
        with acting_as(ALICE):
            for point in await collect(room.trainings.ReadTrainingMetrics(curves(**fields))):
                assert (point.value, point.time) == (point.step / 2, 1.5 * point.step)
                assert point.attempt == (2 if point.series == "train_loss" and point.step >= 1500 else 1)
                steps.setdefault(point.series, []).append(point.step)
        return steps

    everything = await read(max_points=10_000)
    # The test after step 1500 is of an attempt that had ended before it: the next one does it again.
    tests = list(range(100, 1500, 100))
    assert everything == {"test_loss": tests, "train_loss": list(range(1, 1502))}
    by_default = await read()
    assert by_default["test_loss"] == tests
    assert 700 < len(by_default["train_loss"]) <= 1000
    thin = await read(series=["train_loss", "none"], max_points=6)
    assert thin == {"train_loss": [1, 2, 751, 752, 1500, 1501]}
    # Exactly as many as there are: nothing is left out.
    assert len((await read(series=["train_loss"], since_step=1002, max_points=500))["train_loss"]) == 500
    assert await read(since_step=1501) == {"train_loss": [1501]}
    assert await read(since_step=2**31 - 1) == {}


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"max_points": 3}, grpc.StatusCode.INVALID_ARGUMENT, "maxPoints: 3 .*4 to 10000"),
        ({"max_points": 10_001}, grpc.StatusCode.INVALID_ARGUMENT, "maxPoints: 10001"),
        ({"max_points": -1}, grpc.StatusCode.INVALID_ARGUMENT, "maxPoints: -1"),
        ({"since_step": -1}, grpc.StatusCode.INVALID_ARGUMENT, "sinceStep: -1"),
        ({"name": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
    ],
)
@pytest.mark.parametrize("follow", [False, True])
async def test_curves_that_cannot_be_read(
    room: Room, fields: dict[str, Any], code: grpc.StatusCode, message: str, follow: bool
) -> None:
    await room.started()
    with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await collect(room.trainings.ReadTrainingMetrics(curves(**fields, follow=follow)))
    assert caught.value.code() is code


async def test_curves_of_others_are_not_shown(room: Room) -> None:
    job_id = await room.started()
    await record(room, job_id, range(3))
    with acting_as(BOB), pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(room.trainings.ReadTrainingMetrics(curves()))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with acting_as(ADMIN):
        assert len(await collect(room.trainings.ReadTrainingMetrics(curves()))) == 3


async def test_curves_are_followed_until_the_training_ends(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training_service.usecases.metrics.FOLLOW_SECONDS", 0.05)
    job_id = await room.started()
    await record(room, job_id, range(10))
    with acting_as(ALICE):
        call = room.trainings.ReadTrainingMetrics(curves(max_points=4, follow=True))
        assert [(await call.read()).step for _ in range(4)] == [0, 1, 8, 9]
        await record(room, job_id, range(10, 2500))
        assert [(await call.read()).step for _ in range(2490)] == list(range(10, 2500))
        # A repeated step is not given again, a series that begins late is.
        await record(room, job_id, range(2490, 2501), attempt=2)
        assert (await call.read()).step == 2500
        await record(room, job_id, range(2), "test_loss")
        assert [(await call.read()).series for _ in range(2)] == ["test_loss", "test_loss"]
        # What the worker could not deliver any more comes with the end.
        directory = tmp_path / "jobs" / job_id / "attempt-2"
        directory.mkdir(parents=True)
        append_metrics(directory, {"train_loss": 7.0}, 2501)
        room.jobs.move(job_id, "FINISHED", run_directory=str(directory))
        last = await collect(call)
    assert [(point.series, point.step, point.value) for point in last] == [("train_loss", 2501, 7.0)]


async def test_following_ends_with_the_client_and_with_the_training(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training_service.usecases.metrics.FOLLOW_SECONDS", 0.05)
    looks = 0
    series = SqlMetrics.series

    async def counted(metrics: SqlMetrics, job_id: str) -> list[str]:
        nonlocal looks
        looks += 1
        return await series(metrics, job_id)

    monkeypatch.setattr(SqlMetrics, "series", counted)
    job_id = await room.started()
    await record(room, job_id, range(1))
    with acting_as(ALICE):
        calls = [room.trainings.ReadTrainingMetrics(curves(follow=True)) for _ in range(2)]
        for call in calls:
            assert (await call.read()).step == 0
        calls[0].cancel()
        # The service of models is not asked again.
        room.models.known.clear()
        await room.until(lambda: asyncio.sleep(0, looks > 6))
        room.models.known["digits"] = MODEL
        await room.trainings.StopTraining(ask(training_pb2.StopTrainingRequest))
        room.jobs.move(job_id, "KILLED")
        await room.settled("STOPPED")
        await room.trainings.DeleteTraining(ask(training_pb2.DeleteTrainingRequest))
        assert await collect(calls[1]) == []
    seen = looks
    await asyncio.sleep(0.3)
    assert looks == seen


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
    unnumbered = points(6)
    unnumbered.attempt = 0
    code, message = await refused(room.metrics.RecordMetrics(unnumbered))
    assert (code, message.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "attempt")
