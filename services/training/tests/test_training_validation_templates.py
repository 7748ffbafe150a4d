"""The built-in templates for detection and vectors, trained on imported data and validated by the worker programs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.registry import importer_for
from datasets_service.storage.files import DiskSources
from datasets_service.worker.import_dataset import import_dataset
from dlmesh_sdk.detection_datasets import DetectionDataset, collate
from dlmesh_sdk.record_datasets import open_records
from PIL import Image, ImageDraw
from sklearn.metrics import mean_absolute_error, r2_score
from training_service.domain.specs import TrainingSpec, ValidationSpec

REPOSITORY = Path(__file__).parents[3]
BUILTIN = REPOSITORY / "services/models/models_service/builtin"
COLOURS = ("red", "green", "blue")


def imported(folder: Path, source_type: SourceType, backend: Backend, **fields: Any) -> Path:
    """The dataset that the datasets service makes of the sources below `folder`."""
    (folder / "staging").mkdir()
    request = DatasetRequest("data", str(source_type), str(backend), "local", test_percentage=20, **fields)
    spec = ImportSpec(
        uid="dataset",
        name="data",
        source_type=source_type,
        backend=backend,
        options=importer_for(source_type).check(request, DiskSources((folder,))),
        data_roots=(str(folder),),
        staging=str(folder / "staging"),
        target=str(folder / "dataset"),
    )
    import_dataset(spec, lambda done, total: None)
    return folder / "dataset"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures of 64x64 to 96x96 with coloured shapes, as Pascal VOC."""
    folder = tmp_path_factory.mktemp("shapes")
    root = folder / "voc"
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    dice = random.Random(5)
    for number in range(200):
        width, height = dice.randint(64, 96), dice.randint(64, 96)
        image, xml = Image.new("RGB", (width, height), (200, 200, 200)), ""
        draw = ImageDraw.Draw(image)
        for label in dice.sample(COLOURS, dice.randint(2, 3)):
            across, down = dice.randint(12, 28), dice.randint(12, 28)
            x, y = dice.randint(0, width - across - 1), dice.randint(0, height - down - 1)
            draw.rectangle((x, y, x + across - 1, y + down - 1), label)
            corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + across}</xmax><ymax>{y + down}</ymax>"
            xml += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        image.save(root / f"JPEGImages/{number:04d}.jpg", quality=95)
        (root / f"Annotations/{number:04d}.xml").write_text(f"<annotation>{xml}</annotation>")
    return imported(folder, SourceType.IMAGES_FOR_DETECTION, Backend.OBJECT_DETECTION, train_path=str(root))


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 grey pictures with a dot, whose vector is where it is and how large."""
    folder = tmp_path_factory.mktemp("dots")
    root = folder / "images"
    root.mkdir()
    dice, lines = random.Random(6), []
    for number in range(400):
        image = Image.new("L", (32, 32), 30)
        x, y, radius = dice.randint(8, 23), dice.randint(8, 23), dice.randint(2, 6)
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), 220)
        image.save(root / f"{number:04d}.png")
        lines.append(f"{number:04d}.png {x} {y} {radius * 100}\n")
    (root / "list.txt").write_text("".join(lines))
    return imported(
        folder,
        SourceType.IMAGES_TO_VECTOR,
        Backend.IMAGE_VECTOR,
        uses_text_lists=True,
        train_list=str(root / "list.txt"),
        width=32,
        height=32,
        color_mode="Gray",
    )


def run(module: str, spec: Path, job: Path | None = None) -> str:
    packages = ["sdk", "workerkit", "servicekit", "contracts", "recordkit", "caffe_nets"]
    paths = [str(REPOSITORY / "libs" / package) for package in packages] + [str(REPOSITORY / "services/training")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if job:
        job.mkdir()
        environment |= {"DLMESH_JOB_ID": "j1", "DLMESH_JOB_ATTEMPT": "1", "DLMESH_JOB_TOKEN": "t"}
        environment |= {"DLMESH_JOB_DIR": str(job), "DLMESH_SCHEDULING_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-m", f"training_service.worker.{module}", str(spec)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(folder: Path, template: str, dataset: Path, **hyperparameter: Any) -> str:
    settings = json.loads((BUILTIN / template / "template.json").read_text())
    TrainingSpec(
        code=str(BUILTIN / template),
        train_dir=str(folder / "checkpoints"),
        weights="",
        data={split: str(dataset / split) for split in ("train", "test")},
        parameters={
            "batch_size": settings["batchsize"],
            "hyperparameter": settings["hyperparameter"] | hyperparameter,
        },
    ).write(folder / "spec.json")
    return run("run_training", folder / "spec.json")


def validate(
    folder: Path, template: str, dataset: Path, metrics: list[str], threshold: float = 0.0
) -> dict[str, float]:
    """The values; the result file stays in `folder/output`."""
    spec = ValidationSpec(
        code=str(BUILTIN / template),
        model=str(folder / "checkpoints"),
        input_dir=str(dataset / "test"),
        output_dir=str(folder / "output"),
        label_file=str(dataset / "labels.txt"),
        threshold=threshold,
        metrics=metrics,
    )
    file, job = folder / f"validation-{threshold}.json", folder / f"job-{threshold}"
    spec.write(file)
    run("run_validation", file, job)
    result = json.loads(next(job.glob("**/report.json")).read_text())["result"]
    return {pair["name"]: float(pair["value"]) for pair in result["pairs"]}


@pytest.mark.slow
def test_detection_finds_coloured_shapes(tmp_path: Path, shapes: Path) -> None:
    train(tmp_path, "pytorch-object-detection", shapes)
    values = validate(tmp_path, "pytorch-object-detection", shapes, ["IoU", "mAP", "mAP50", "mAP_VOC", "mAP_VOC07"])
    assert values["mAP50"] >= 0.7
    assert values["mAP_VOC"] >= 0.7
    assert 0.3 <= values["mAP"] <= values["mAP50"]
    assert values["IoU"] >= 0.5
    # Nothing is so sure: everything is missed.
    assert validate(tmp_path, "pytorch-object-detection", shapes, ["IoU", "mAP"], 1.0) == {"IoU": 0.0, "mAP": 0.0}


@pytest.mark.slow
def test_vectors_are_learned(tmp_path: Path, dots: Path) -> None:
    output = train(tmp_path, "pytorch-image-to-vector", dots)
    assert "tag test_mae" in output
    values = validate(tmp_path, "pytorch-image-to-vector", dots, ["MAE", "RMSE", "R2"])
    assert values["R2"] >= 0.9
    result = json.loads((tmp_path / "output" / "validation.json").read_text())
    predicted = [row["vector"] for row in result["result"]]
    records = open_records(dots / "test", lambda image: np.zeros((1, 1, 1), np.float32))
    truth = [records[number][1].tolist() for number in range(len(records))]
    assert [row["groundTruth"] for row in result["samples"]] == truth
    assert values["R2"] == pytest.approx(r2_score(truth, predicted), rel=1e-4)
    assert values["MAE"] == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-4)


def test_the_reader_scales_boxes_with_their_image(shapes: Path) -> None:
    def half(image: Image.Image) -> np.ndarray:
        small = image.resize((48, 32))
        return np.asarray(small, np.float32).transpose(2, 0, 1)

    labels = (shapes / "labels.txt").read_text().split()
    assert labels == sorted(COLOURS)
    dataset = DetectionDataset(shapes / "test", labels, half)
    assert len(dataset) == 40
    annotation = dataset.annotation(3)
    pixels, target = dataset[3]
    assert pixels.shape == (3, 32, 48)
    assert target["size"].tolist() == [annotation["height"], annotation["width"]]
    scale = torch.tensor([48 / annotation["width"], 32 / annotation["height"]] * 2)
    assert torch.allclose(target["boxes"], torch.tensor([box["bbox"] for box in annotation["boxes"]]) * scale)
    assert [labels[index] for index in target["labels"]] == [box["label"] for box in annotation["boxes"]]
    # Where the box says it is red, it is.
    for (xmin, ymin, xmax, ymax), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        middle = pixels[:, int((ymin + ymax) / 2), int((xmin + xmax) / 2)]
        assert labels[label] in COLOURS
        assert middle.std() > 20
    images, targets = collate([dataset[0], dataset[1]])
    assert images.shape == (2, 3, 32, 48)
    assert [set(target) for target in targets] == [{"boxes", "labels", "ignored", "size"}] * 2


def test_the_reader_says_what_is_wrong(tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(ValueError, match="a split of an object detection dataset is needed"):
        DetectionDataset(tmp_path, ["red"], np.asarray)
    dataset = DetectionDataset(shapes / "test", ["red"], lambda image: np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="is none of red"):
        [dataset[index] for index in range(len(dataset))]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
