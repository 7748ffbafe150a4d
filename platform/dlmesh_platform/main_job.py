"""The platform's main job, through the public REST API alone: images in, a trained, validated, served model out.

Steps are methods, so the demo can draw them, tests can do one, and the chaos tests can kill something between two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh_platform.client import Client, named, segment

TEMPLATE = "pytorch-image-classification"
IMAGE_PIXELS = 16
# NCCL wants a GPU for each rank; without GPUs two ranks show the gang at work.
RANKS = 1 if len(list(Path("/dev").glob("nvidia[0-9]*"))) == 1 else 2
Progress = Callable[[float, str], None]


def _silent(percent: float, status: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Prediction:
    """What Triton said about one image."""

    image: str
    label: str
    probability: float


@dataclass(frozen=True)
class Validation:
    """`confusion[truth][predicted]` counts the samples of the test split; `top1` is a fraction."""

    top1: float
    labels: list[str]
    confusion: list[list[int]]


def write_digits(train: Path, held_out: Path, *, per_digit_held_out: int = 1) -> dict[str, Path]:
    """Write scikit-learn's 1797 scans of handwritten digits as PNGs of 8x8 pixels: a folder a digit below `train`.

    The last `per_digit_held_out` of each digit go flat into `held_out` instead; returns those as {file stem: path}, the
    stem beginning with the true digit.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    kept: dict[str, Path] = {}
    held_out.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        scans = digits.images[digits.target == digit]
        folder = train / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        for index, scan in enumerate(scans):
            image = Image.fromarray((scan * (255 / 16)).astype("uint8"))
            if index < len(scans) - per_digit_held_out:
                image.save(folder / f"{index:04d}.png")
            else:
                stem = f"{digit}_{index:04d}"
                kept[stem] = held_out / f"{stem}.png"
                image.save(kept[stem])
    return kept


@dataclass
class MainJob:
    """One run; all it makes is named after `prefix`. `image_folder` lies below a data root, relative or absolute.

    `backend` is LMDB or TFRecords.
    """

    client: Client
    image_folder: str
    prefix: str = "digits"
    backend: str = "LMDB"
    epochs: int = 15
    seconds: float = 240.0
    poll_seconds: float = 0.3

    @property
    def model_path(self) -> str:
        """Path segment of the model."""
        return f"/models/{segment(self.prefix)}"

    def create_dataset(self) -> None:
        """POST /datasets."""
        self.client.post(
            "/datasets",
            {
                "name": self.prefix,
                "dbbackend": self.backend,
                "shards": 4,
                "datasourcetype": "IMAGEFORCLASSIFICATION",
                "sigid": "local",
                "imagedetail": {
                    "isusingtext": False,
                    "trainimagepath": self.image_folder,
                    "imagetype": "Gray",
                    "height": IMAGE_PIXELS,
                    "width": IMAGE_PIXELS,
                    "resizetransformation": "squash",
                    "valpercentage": 10,
                    "testpercentage": 10,
                },
            },
        )

    def await_dataset(self, progress: Progress = _silent) -> dict[str, Any]:
        """Until the import has finished; the dataset's detail."""
        return self._wait(lambda: self.client.get(f"/datasets/{segment(self.prefix)}"), progress)

    def create_model(self) -> None:
        """POST /models from the template that ships."""
        named(self.client.get("/modeltemplates"), "name", TEMPLATE)
        self.client.post(
            "/models",
            {
                "name": self.prefix,
                "templatename": TEMPLATE,
                "dataset": self.prefix,
                "sig": "local",
                "accelerator": "Native",
                "type": "Training",
                "batchsize": 64,
                "hyperparameter": {
                    "solvertype": "Adam",
                    "learningrate": 0.002,
                    "lrpolicy": "cosineannealing",
                    "epoch": self.epochs,
                },
            },
        )

    def start_training(self, name: str = "first") -> None:
        """POST /models/{m}/trainings on RANKS ranks."""
        self.client.post(
            f"{self.model_path}/trainings", {"trainName": name, "dlFramework": "PyTorch", "clusterSize": RANKS}
        )

    def training(self, name: str = "first") -> dict[str, Any]:
        """The training's parameters, status and progress."""
        detail: dict[str, Any] = self.client.get(f"{self.model_path}/trainings/{segment(name)}")["trainingParameters"]
        return detail

    def await_training(self, progress: Progress = _silent, name: str = "first") -> dict[str, Any]:
        """Until the training has finished."""
        return self._wait(lambda: self.training(name), progress)

    def start_validation(self, name: str = "check", training: str = "first") -> None:
        """POST /models/{m}/validations."""
        self.client.post(
            f"{self.model_path}/validations",
            {"valName": name, "trainName": training, "metrics": ["Top1", "ConfusionMatrix"]},
        )

    def await_validation(self, progress: Progress = _silent, name: str = "check") -> Validation:
        """Until the validation has finished."""

        def fetch() -> dict[str, Any]:
            for detail in self.client.get(f"{self.model_path}/validations"):
                if detail["valParameters"]["valName"] == name:
                    return dict(detail)
            raise LookupError(f"validation {name} is gone")

        results = self._wait(fetch, progress)["outPairs"]
        matrix = json.loads(named(results, "name", "ConfusionMatrix")["value"])
        return Validation(float(named(results, "name", "Top1")["value"]), matrix["labels"], matrix["matrix"])

    @property
    def inference_model(self) -> str:
        """Name of the served model."""
        return f"{self.prefix}-online"

    def create_inference(self, training: str = "first") -> None:
        """POST /inferences."""
        self.client.post(
            "/inferences",
            {"modelName": self.prefix, "trainName": training, "inferenceModelName": self.inference_model},
        )

    def start_prediction(self, images: list[Path], name: str) -> None:
        """POST /inferences/startpredict with the images as parts image0, image1, ..."""
        self.client.upload(
            "/inferences/startpredict",
            {"modelname": self.inference_model, "threshold": "0", "predictname": name},
            {f"image{index}": path for index, path in enumerate(images)},
        )

    def await_prediction(self, name: str, progress: Progress = _silent) -> list[Prediction]:
        """Until the prediction has finished; the best label of each image."""
        path = f"/inferences/{segment(name)}"
        self._wait(lambda: self.client.get(path), progress)
        predictions = []
        for sample in self.client.get(f"{path}/predicts")["classificationResults"]:
            best = max(sample["results"], key=lambda result: result["prob"])
            image = Path(sample.get("sampleId") or sample["inputPath"]).name
            predictions.append(Prediction(image, best["label"], best["prob"]))
        return predictions

    def _wait(self, fetch: Callable[[], dict[str, Any]], progress: Progress) -> dict[str, Any]:
        def report(detail: dict[str, Any]) -> None:
            is_finished = detail.get("status") == "FINISHED"
            progress(100.0 if is_finished else _percent(detail.get("progress")), str(detail.get("status", "")))

        detail: dict[str, Any] = self.client.wait(
            fetch, seconds=self.seconds, on_change=report, interval_seconds=self.poll_seconds
        )
        return detail


def _percent(progress: int | str | None) -> float:
    """Of trainings it is a percentage, of predictions done/all."""
    done, _, total = str(progress or 0).partition("/")
    return 100 * float(done) / float(total) if total else float(done)
