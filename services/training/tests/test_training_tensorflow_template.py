"""The built-in TensorFlow template: trained on imported digits, stopped, continued by two workers, then validated."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.registry import importer_for
from datasets_service.storage.files import DiskSources
from datasets_service.worker.import_dataset import import_dataset
from PIL import Image
from sklearn.datasets import load_digits
from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.registry import framework_named

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
TEMPLATE = REPOSITORY / "services/models/models_service/builtin/tensorflow-image-classification"
PACKAGES = ["libs/sdk", "libs/workerkit", "libs/servicekit", "libs/contracts", "libs/recordkit", "services/training"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[Backend, Path]:
    """scikit-learn's digits as pictures of 8x8, imported as LMDB and as TFRecords."""
    folder = tmp_path_factory.mktemp("digits")
    samples = load_digits()
    for number, (pixels, label) in enumerate(zip(samples.images, samples.target, strict=True)):
        image = folder / "images" / str(label) / f"{number:04d}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(image)
    datasets = {}
    for backend in (Backend.LMDB, Backend.TFRECORDS):
        staging, target = folder / f"staging-{backend}", folder / f"dataset-{backend}"
        staging.mkdir()
        request = DatasetRequest(
            "digits",
            str(SourceType.IMAGES_FOR_CLASSIFICATION),
            str(backend),
            "local",
            train_path=str(folder / "images"),
            test_percentage=20,
            width=8,
            height=8,
            color_mode="Gray",
        )
        spec = ImportSpec(
            uid=f"digits-{backend}",
            name="digits",
            source_type=SourceType.IMAGES_FOR_CLASSIFICATION,
            backend=backend,
            options=importer_for(SourceType.IMAGES_FOR_CLASSIFICATION).check(request, DiskSources((folder,))),
            data_roots=(str(folder),),
            staging=str(staging),
            target=str(target),
        )
        import_dataset(spec, lambda done, total: None)
        datasets[backend] = target
    return datasets


def started(folder: Path, ranks: int, job: Path) -> list[subprocess.Popen[str]]:
    """The ranks of an attempt at the training that `folder/spec.json` describes."""
    job.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / package) for package in PACKAGES]),
        "DLMESH_JOB_ID": "j1",
        "DLMESH_JOB_DIR": str(job),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "training_service.worker.run_training", str(folder / "spec.json")]
    return [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(ranks)
    ]


def outputs(processes: list[subprocess.Popen[str]], code: int) -> str:
    """The first rank's output once all have ended with `code`."""
    try:
        texts = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(texts)
    return texts[0]


def write_training(folder: Path, dataset: Path, weights: str = "", **hyperparameter: object) -> None:
    settings = json.loads((TEMPLATE / "template.json").read_text())
    TrainingSpec(
        code=str(TEMPLATE),
        train_dir=str(folder / "checkpoints"),
        weights=weights,
        data={split: str(dataset / split) for split in ("train", "test")},
        parameters={
            "batch_size": settings["batchsize"],
            "hyperparameter": settings["hyperparameter"] | hyperparameter,
        },
        framework="TensorFlow",
    ).write(folder / "spec.json")


def validate(folder: Path, dataset: Path) -> dict[str, str]:
    job = folder / "validation-job"
    job.mkdir()
    ValidationSpec(
        code=str(TEMPLATE),
        model=str(folder / "checkpoints"),
        input_dir=str(dataset / "test"),
        output_dir=str(folder / "output"),
        label_file=str(dataset / "labels.txt"),
        threshold=0.0,
        metrics=["Top1", "Top5", "ConfusionMatrix"],
        framework="TensorFlow",
    ).write(folder / "validation.json")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / package) for package in PACKAGES),
        "DLMESH_JOB_ID": "j2",
        "DLMESH_JOB_DIR": str(job),
    }
    command = [sys.executable, "-m", "training_service.worker.run_validation", str(folder / "validation.json")]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((job / "report.json").read_text())["result"]
    return {pair["name"]: pair["value"] for pair in result["pairs"]}


def test_a_stopped_training_goes_on_with_two_workers_and_learns_digits(
    tmp_path: Path, digits: dict[Backend, Path]
) -> None:
    dataset = digits[Backend.LMDB]
    write_training(tmp_path, dataset, epoch=6)
    alone = started(tmp_path, 1, tmp_path / "job-1")
    assert alone[0].stdout
    assert any("tag train_loss" in line for line in iter(alone[0].stdout.readline, ""))
    asked = time.monotonic()
    alone[0].send_signal(signal.SIGTERM)
    stopped = outputs(alone, 143)
    assert time.monotonic() - asked < 10
    last = int(stopped.split("Stopped after iteration ")[1].split()[0])
    log = outputs(started(tmp_path, 2, tmp_path / "job-2"), 0)
    iterations = [int(line.split()[1].rstrip(":")) for line in log.splitlines() if line.startswith("Iteration ")]
    assert min(iterations) == last + 1
    # 1437 pictures in batches of 64 are 23 steps an epoch.
    assert max(iterations) == 6 * 23
    assert framework_named("TensorFlow").weight_file(tmp_path / "checkpoints") == "model_epoch_final.keras"
    series = [json.loads(line)["values"] for line in (tmp_path / "job-2" / "metrics.jsonl").read_text().splitlines()]
    names = {"train_loss", "train_accuracy", "learning_rate", "samples_per_second", "memory_bytes"}
    assert names <= set().union(*series)
    values = validate(tmp_path, dataset)
    assert float(values["Top1"]) >= 0.95
    assert float(values["Top5"]) >= float(values["Top1"])
    # The last test of the training was on the same pictures.
    accuracy = [line for line in log.splitlines() if "tag test_accuracy" in line][-1]
    assert float(values["Top1"]) == pytest.approx(float(accuracy.rsplit(" ", 1)[1]), abs=1e-4)


def test_tfrecords_and_given_weights(tmp_path: Path, digits: dict[Backend, Path]) -> None:
    dataset = digits[Backend.TFRECORDS]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    write_training(tmp_path / "first", dataset, epoch=3)
    outputs(started(tmp_path / "first", 1, tmp_path / "job-1"), 0)
    # A rate of almost nothing: what it knows it was given.
    weights = str(tmp_path / "first" / "checkpoints")
    write_training(tmp_path / "second", dataset, weights, maxiteration=2, epoch=0, learningrate=1e-7)
    outputs(started(tmp_path / "second", 1, tmp_path / "job-2"), 0)
    assert float(validate(tmp_path / "second", dataset)["Top1"]) >= 0.9
