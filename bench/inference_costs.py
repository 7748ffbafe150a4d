"""What serving costs: online through the gateway, batches, models that come and go, kernels."""

from __future__ import annotations

import csv
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import MainJob, write_digits
from inference_batch import measure_batches
from inference_idle import LOADED, measure_idle
from inference_kernels import measure_kernels
from inference_online import make_picture, measure_online, ratios
from inference_swaps import measure_swaps
from report import Row, announce

# Pictures of each net: a turn takes some tens of seconds on two cores.
BATCHES, BATCH_TURNS = {"small net": 2400, "ResNet": 1200}, 4
LEAST_OF_IDEAL = 0.9
TEXT_TEMPLATE = "pytorch-text-classification"
PATIENCE: dict[str, float] = {"seconds": 600.0, "interval_seconds": 1.0}


def measure_inference() -> list[Row]:
    """Rows of the section `inference`."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        # While it is measured no model goes for being idle.
        memory = {"DLMESH_MODEL_IDLE_SECONDS": "0", "DLMESH_MAX_LOADED_MODELS": str(LOADED)}
        with launch(Path(folder), memory) as platform:
            online = measure_online(platform, serve_pictures(platform), serve_texts(platform))
            for name in ("digits-online", "texts-online"):
                platform.client().delete(f"/models/{name}")
            idle = list(measure_idle(platform, ("digits", "first"), make_picture()))
    return [*online, *batch_rows(), *idle, *measure_swaps(), *measure_kernels()]


def serve_pictures(platform: RunningPlatform) -> str:
    """A trained model of digits, READY; its name."""
    announce("training what is served: pictures")
    write_digits(platform.home / "data" / "digits", platform.home / "held-out")
    job = MainJob(platform.client(), "digits", epochs=3, seconds=PATIENCE["seconds"])
    for step in (job.create_dataset, job.await_dataset, job.create_model, job.start_training, job.await_training):
        step()
    return _serve(platform.client(), "digits")


def serve_texts(platform: RunningPlatform) -> str:
    """A trained model of short texts, READY; its name."""
    announce("training what is served: texts")
    client, data = platform.client(), platform.home / "data"
    dice = random.Random(1)
    (data / "games").mkdir()
    for split, count in {"train": 400, "val": 100, "test": 100}.items():
        with (data / "games" / f"{split}.csv").open("w", newline="") as file:
            pairs = (dice.sample(["Ann", "Bob", "Cleo", "Dan", "Eve"], 2) for _ in range(count))
            csv.writer(file).writerows([["report", "winner"], *([f"{a} beats {b}!", a] for a, b in pairs)])
    paths = {f"{split}path": f"games/{split}.csv" for split in ("train", "val", "test")}
    kind = {"dbbackend": "CSV", "datasourcetype": "CSV", "sigid": "local"}
    client.post("/datasets", {"name": "games", **kind, **paths})
    client.wait(lambda: client.get("/datasets/games"), **PATIENCE)
    shutil.copytree(client.get(f"/modeltemplates/{TEXT_TEMPLATE}")["path"], data / "winners")
    program = data / "winners" / "main.py"
    program.write_text(program.read_text().replace('TARGET = ""', 'TARGET = "winner"'))
    (data / "winners" / "template.json").unlink()
    client.post("/modeltemplates", {"name": "winners", "path": "winners", "framework": "PyTorch"})
    rates = {"solvertype": "Adam", "learningrate": 0.002, "lrpolicy": "fixed", "epoch": 1}
    body = {"name": "texts", "templatename": "winners", "dataset": "games", "sig": "local", "accelerator": "Single"}
    client.post("/models", {**body, "type": "Training", "batchsize": 32, "hyperparameter": rates})
    client.post("/models/texts/trainings", {"trainName": "first", "dlFramework": "PyTorch", "clusterSize": 1})
    client.wait(lambda: client.get("/models/texts/trainings/first")["trainingParameters"], **PATIENCE)
    return _serve(client, "texts")


def _serve(client: Client, model: str) -> str:
    name = f"{model}-online"
    client.post("/inferences", {"modelName": model, "trainName": "first", "inferenceModelName": name})

    def detail() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/servedmodels/{name}")
        return found

    client.until(lambda: detail()["state"] in ("READY", "FAILED"), **PATIENCE)
    if detail()["state"] != "READY":
        raise RuntimeError(detail()["statusMessage"])
    return name


def batch_rows() -> Iterator[Row]:
    """A prediction's worker beside an ideal loop in one process."""
    announce("predictions of folders")
    for batches in measure_batches(BATCHES, BATCH_TURNS):
        ratio, shown = ratios(batches.ours, batches.ideal)
        yield Row(
            f"prediction of a folder, 224 x 224 JPEG, {batches.net}",
            f"{sorted(batches.ours)[len(batches.ours) // 2]:,.0f} pictures/s",
            f"{sorted(batches.ideal)[len(batches.ideal) // 2]:,.0f} pictures/s loop in one process",
            shown,
            f"at least {LEAST_OF_IDEAL}",
            ratio >= LEAST_OF_IDEAL,
        )


if __name__ == "__main__":
    for row in measure_inference():
        print(json.dumps(row.cells))
