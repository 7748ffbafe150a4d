"""Elastic trainings over REST: they give slots to others, take them again, and survive the loss of a worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import Client, named
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import attempts_of, ranks_of

pytestmark = [pytest.mark.platform, pytest.mark.slow]

TEMPLATE = "pytorch-image-classification"
POLICY = {"solvertype": "Adam", "learningrate": 0.002, "lrpolicy": "cosineannealing"}


@pytest.fixture(name="dataset")
def shared_dataset(trained: MainJob) -> str:
    """Digits."""
    return trained.prefix


def make_model(admin: Client, name: str, dataset: str, **fields: Any) -> str:
    body = {"name": name, "templatename": TEMPLATE, "dataset": dataset, "sig": "local", "batchsize": 64}
    admin.post("/models", {**body, "accelerator": "Elastic", **fields})
    return f"/models/{name}/trainings"


def detail(admin: Client, training: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.get(training)["trainingParameters"]
    return found


def ended(admin: Client, training: str, seconds: float = 600) -> dict[str, Any]:
    admin.until(lambda: detail(admin, training)["status"] in ("FINISHED", "FAILED", "STOPPED"), seconds=seconds)
    return detail(admin, training)


def test_it_shrinks_for_others_grows_again_and_survives_a_kill(
    admin: Client, platform: RunningPlatform, dataset: str
) -> None:
    trainings = make_model(admin, "stretch", dataset, hyperparameter={**POLICY, "epoch": 36})
    body = {"dlFramework": "PyTorch", "checkpointInterval": 20}
    admin.post(trainings, {**body, "trainName": "long", "minWorkers": 1, "clusterSize": 2})
    long = f"{trainings}/long"
    admin.until(lambda: detail(admin, long)["workers"] == 2 and detail(admin, long)["progress"] > 2, seconds=60)

    # Another training needs a slot: it does not wait for the end of this one.
    others = make_model(admin, "other", dataset, hyperparameter={**POLICY, "epoch": 4}, accelerator="Single")
    admin.post(others, {"dlFramework": "PyTorch", "trainName": "short", "clusterSize": 1})
    admin.until(lambda: detail(admin, long)["workers"] == 1, seconds=60)
    other = ended(admin, f"{others}/short")
    assert other["status"] == "FINISHED", other["statusMessage"]
    assert detail(admin, long)["status"] == "RUNNING"

    # The slot is free again.
    admin.until(lambda: detail(admin, long)["workers"] == 2, seconds=60)
    seen = len(attempts_of(platform, detail(admin, long)))
    output = attempts_of(platform, detail(admin, long))[-1] / "rank-0.out"
    admin.until(lambda: output.exists() and "Iteration" in output.read_text(), seconds=60)
    os.kill(ranks_of(platform, detail(admin, long))[-1].pid, signal.SIGKILL)
    admin.until(lambda: len(attempts_of(platform, detail(admin, long))) > seen, seconds=60)

    done = ended(admin, long)
    assert (done["status"], done["progress"]) == ("FINISHED", 100), done["statusMessage"]
    # Every attempt went on from the one before: no step was made anew from the beginning.
    steps = []
    for attempt in attempts_of(platform, done):
        text = (attempt / "rank-0.out").read_text()
        numbers = [int(line.split()[1].rstrip(":")) for line in text.splitlines() if line.startswith("Iteration")]
        steps.append(numbers)
    begun = [numbers[0] for numbers in steps if numbers]
    assert len(begun) >= 4
    assert begun == sorted(begun)
    assert begun[1] > 1
    assert admin.get(f"{long}/weightfile") == "model_epoch_final.pth"
    admin.post("/models/stretch/validations", {"valName": "check", "trainName": "long", "metrics": ["Top1"]})

    def validation() -> dict[str, Any]:
        (found,) = admin.get("/models/stretch/validations")
        one: dict[str, Any] = found
        return one

    admin.until(lambda: validation()["status"] in ("FINISHED", "FAILED"), seconds=240)
    assert validation()["status"] == "FINISHED", validation()["statusMessage"]
    assert float(named(validation()["outPairs"], "name", "Top1")["value"]) > 0.95


def test_async_trains_and_a_stop_keeps_its_checkpoint(admin: Client, dataset: str) -> None:
    trainings = make_model(admin, "apart", dataset, hyperparameter={**POLICY, "epoch": 6})
    body = {"dlFramework": "PyTorch", "syncMode": "ASYNC", "minWorkers": 2, "clusterSize": 2}
    admin.post(trainings, {**body, "trainName": "whole"})
    done = ended(admin, f"{trainings}/whole")
    assert (done["status"], done["syncMode"]) == ("FINISHED", "ASYNC"), done["statusMessage"]
    endless = make_model(admin, "endless-apart", dataset, hyperparameter={**POLICY, "epoch": 10_000})
    admin.post(endless, {**body, "trainName": "t"})
    admin.until(lambda: detail(admin, f"{endless}/t")["status"] == "RUNNING", seconds=30)
    steps = Path(detail(admin, f"{endless}/t")["path"]) / "steps"
    admin.until(lambda: steps.is_dir(), seconds=30)
    admin.put(f"{endless}/t/stop")
    stopped = ended(admin, f"{endless}/t", seconds=20)
    assert stopped["status"] == "STOPPED"
    assert any(steps.glob("step-*/manifest.json"))
