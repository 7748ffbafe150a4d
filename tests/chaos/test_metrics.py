"""The services hang and die in the middle of a training: it goes on as if nothing were, and no point of its curves is
lost or doubled."""

from __future__ import annotations

import base64
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import training_pb2, training_pb2_grpc
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import attempts_of
from testkit.tensorboard import read_curves
from workerkit.spool import read_metrics

pytestmark = [pytest.mark.platform, pytest.mark.slow]

SILENCE_SECONDS = 4.0
EVERYTHING = "10000"
TRAINING = "/models/curves/trainings/t"


@contextmanager
def silent(*pids: int) -> Iterator[None]:
    """The processes keep their connections and answer nobody."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def detail(admin: Client) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(TRAINING)["trainingParameters"]
    return found


def spooled(attempt: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Value and time by series and step: what the worker reported."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    points, end = read_metrics(attempt, 0)
    while points:
        found |= {(point.series, point.step): (point.value, point.time) for point in points}
        points, end = read_metrics(attempt, end)
    return found


def by_grpc(platform: RunningPlatform, **fields: Any) -> list[int]:
    """The steps that a gRPC client sees on the public port."""
    basic = base64.b64encode(b"Admin:" + (platform.home / "admin_password").read_bytes().strip()).decode()
    request = training_pb2.ReadTrainingMetricsRequest(model_name="curves", name="t", **fields)
    with grpc.insecure_channel(platform.url.removeprefix("http://")) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        answers = stub.ReadTrainingMetrics(request, metadata=[("authorization", f"Basic {basic}")], timeout=20)
        return [point.step for point in answers]


def test_curves_of_a_training_survive_silence_and_death_of_the_services(
    admin: Client, platform: RunningPlatform, trained: MainJob
) -> None:
    endless = {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": 100_000}
    model = {"name": "curves", "templatename": "pytorch-image-classification", "dataset": trained.prefix}
    admin.post("/models", {**model, "sig": "local", "accelerator": "Native", "hyperparameter": endless})
    body = {"trainName": "t", "dlFramework": "PyTorch", "clusterSize": 2}
    admin.post("/models/curves/trainings", body)

    def points(**query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = admin.get(f"{TRAINING}/metrics", **query)
        return found

    admin.until(lambda: len(points(series="train_loss")) > 2, seconds=60)
    (attempt,) = attempts_of(platform, detail(admin))
    pids = platform.pids()
    before = time.time()
    with silent(pids["training"], pids["scheduling"]):
        time.sleep(SILENCE_SECONDS)
    os.kill(pids["training"], signal.SIGKILL)
    admin.until(lambda: platform.pids().get("training") not in (pids["training"], None), seconds=20)
    after = time.time()

    # Somebody watches until the end.
    followed: list[dict[str, Any]] = []
    patient = platform.client()
    query = {"follow": "true", "maxPoints": "4", "sinceStep": "1"}
    watcher = threading.Thread(target=lambda: followed.extend(patient.get(f"{TRAINING}/metrics", **query)))
    watcher.start()
    time.sleep(1.5)
    admin.put(f"{TRAINING}/stop")
    admin.until(lambda: detail(admin)["status"] == "STOPPED", seconds=20)
    watcher.join(10)
    assert not watcher.is_alive()
    patient.close()

    # One attempt: a silence kills nothing.
    assert attempts_of(platform, detail(admin)) == [attempt]
    expected = spooled(attempt)
    stored = points(maxPoints=EVERYTHING)
    assert Counter((point["series"], point["step"]) for point in stored) == Counter(expected.keys())
    found = {(point["series"], point["step"]): (point["value"], point["time"]) for point in stored}
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair, rel=1e-12), key
    assert {point["attempt"] for point in stored} == {1}
    series = {"train_loss", "train_accuracy", "learning_rate", "samples_per_second", "memory_bytes"}
    assert series <= {name for name, _ in expected}
    # It did not wait: a point came every second, as before and after.
    times = sorted(when for (name, _), (_, when) in expected.items() if name == "train_loss")
    during = [when for when in times if before <= when <= after]
    assert len(during) >= SILENCE_SECONDS / 2
    assert max(late - early for early, late in itertools.pairwise(times)) < SILENCE_SECONDS
    # TensorBoard draws the same, in single precision.
    drawn = read_curves(Path(detail(admin)["path"]).parent / "log" / "curves")
    assert {(tag, step): value for tag, curve in drawn.items() for step, value, _ in curve} == pytest.approx(
        {key: value for key, (value, _) in expected.items()}, rel=1e-6
    )
    # Who watched has seen the ends of what there was, and all that came.
    watched = [point["step"] for point in followed if point["series"] == "train_loss"]
    steps = sorted(step for name, step in expected if name == "train_loss")
    assert watched == sorted(set(watched))
    assert watched[0] == steps[0]
    assert watched[-2:] == steps[-2:]

    assert by_grpc(platform, series=["train_loss"]) == steps
    assert by_grpc(platform, series=["train_loss"], since_step=steps[1], max_points=4, follow=True)[0] == steps[1]

    for name, value, named in (("maxPoints", "3", "maxPoints"), ("sinceStep", "-1", "sinceStep"), ("follow", "x", "x")):
        with pytest.raises(ApiError, match=named) as refused:
            points(**{name: value})
        assert refused.value.status == 400
    with pytest.raises(ApiError) as missing:
        admin.get("/models/curves/trainings/none/metrics")
    assert missing.value.status == 404
    admin.delete(TRAINING)
