"""Every template that ships, over REST: trained on data made here, measured, refused or not for serving, deleted."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from dlmesh_platform.client import ApiError, Client, named
from dlmesh_platform.launch import RunningPlatform
from PIL import Image, ImageDraw

pytestmark = [pytest.mark.platform, pytest.mark.slow]

# On two workers, and with a kill, in test_tensorflow_trainings.
ELSEWHERE = {"tensorflow-image-classification"}
PERCENTAGES = {"valpercentage": 20, "testpercentage": 20}
SCANS = 100


@dataclass(frozen=True)
class Case:
    """A template, what it learns from, what is less than its own settings, and how well it must do."""

    template: str
    dataset: str
    metric: str
    least: float
    hyperparameter: dict[str, Any] = field(default_factory=dict)
    framework: str = "PyTorch"


CASES = [
    Case("pytorch-image-classification", "digits-8", "Top1", 0.9, {"epoch": 6}),
    Case("pytorch-resnet-image-classification", "digits-8", "Top1", 0.9, {"epoch": 4}),
    Case("pytorch-image-comparison", "digits-8", "Top1", 0.9, {"epoch": 4}),
    Case("pytorch-object-detection", "squares", "mAP50", 0.7, {"epoch": 10}),
    Case("pytorch-image-to-vector", "dots", "R2", 0.8, {"epoch": 10}),
    Case("pytorch-tabular", "pixels", "Top1", 0.9, {"epoch": 6}),
    Case("pytorch-text-classification", "winners", "Top1", 0.95, {"learningrate": 0.002, "epoch": 6}),
    Case("caffe-lenet", "digits-28", "Top1", 0.9, {"maxiteration": 80}, "Caffe"),
    Case("caffe-cifar", "digits-28", "Top1", 0.8, {"maxiteration": 100}, "Caffe"),
]


def write_digits(data: Path) -> Path:
    """100 scans each of five digits."""
    folder = data / "few-digits"
    if not folder.exists():
        for digit in range(5):
            (folder / str(digit)).mkdir(parents=True)
            for file in sorted((data / "digits" / str(digit)).iterdir())[:SCANS]:
                shutil.copy(file, folder / str(digit))
    return folder


def digits(side: int) -> Callable[[Path], dict[str, Any]]:
    def request(data: Path) -> dict[str, Any]:
        images = {"trainimagepath": write_digits(data).name, "imagetype": "Gray", "width": side, "height": side}
        detail = {**images, **PERCENTAGES, "resizetransformation": "squash"}
        return {"datasourcetype": "IMAGEFORCLASSIFICATION", "dbbackend": "LMDB", "imagedetail": detail}

    return request


def squares(data: Path) -> dict[str, Any]:
    """Pictures with a red and a blue square, as Pascal VOC."""
    for name in ("JPEGImages", "Annotations"):
        (data / "squares" / name).mkdir(parents=True)
    dice = random.Random(3)
    for number in range(120):
        image, xml = Image.new("RGB", (64, 64), "white"), ""
        for left, color in ((0, "red"), (32, "blue")):
            side = dice.randint(14, 26)
            x, y = left + dice.randint(0, 31 - side), dice.randint(0, 63 - side)
            ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), color)
            corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + side}</xmax><ymax>{y + side}</ymax>"
            xml += f"<object><name>{color}</name><bndbox>{corners}</bndbox></object>"
        image.save(data / f"squares/JPEGImages/{number:03d}.jpg", quality=95)
        (data / f"squares/Annotations/{number:03d}.xml").write_text(f"<annotation>{xml}</annotation>")
    request = {"datasourcetype": "IMAGEFOROBJECTDETECTION", "dbbackend": "ObjectDetection"}
    return {**request, "trainpath": "squares", "imagedetail": PERCENTAGES}


def dots(data: Path) -> dict[str, Any]:
    """Pictures with a dot, and where it is."""
    (data / "dots").mkdir()
    dice, lines = random.Random(4), []
    for number in range(400):
        x, y = dice.randint(2, 13), dice.randint(2, 13)
        image = Image.new("L", (16, 16), 30)
        ImageDraw.Draw(image).ellipse((x - 2, y - 2, x + 2, y + 2), 220)
        image.save(data / f"dots/{number:03d}.png")
        lines.append(f"{number:03d}.png {x} {y}\n")
    (data / "dots/list.txt").write_text("".join(lines))
    images = {"isusingtext": True, "traintextpath": "dots/list.txt", "trainimagepath": "dots", "imagetype": "Gray"}
    detail = {**images, "width": 16, "height": 16, **PERCENTAGES}
    return {"datasourcetype": "IMGTOVECTOR", "dbbackend": "ImageVector", "imagedetail": detail}


def write_table(data: Path, name: str, header: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    request = {"datasourcetype": "CSV", "dbbackend": "CSV"}
    (data / name).mkdir()
    last = len(rows) // 5 // 2 * 2
    parts = {"train": rows[2 * last :], "val": rows[:last], "test": rows[last : 2 * last]}
    for split, part in parts.items():
        with (data / name / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *part])
        request[f"{split}path"] = f"{name}/{split}.csv"
    return request


def pixels(data: Path) -> dict[str, Any]:
    """Digits as rows of 64 numbers, some of them missing, and their names."""
    dice, rows = random.Random(5), []
    for file in write_digits(data).glob("*/*.png"):
        with Image.open(file) as image:
            values = [value if dice.random() > 0.02 else "" for value in image.tobytes()]
        rows.append([*values, ("zero", "one", "two", "three", "four")[int(file.parent.name)]])
    dice.shuffle(rows)
    return write_table(data, "pixels", [f"pixel {number}" for number in range(64)] + ["digit"], rows)


def winners(data: Path) -> dict[str, Any]:
    """Texts of two players and who wins: each has the same words as another one with another winner."""
    dice, rows = random.Random(6), []
    for _ in range(500):
        when = dice.choice(["", "In June: ", "yesterday, ", "surely "])
        first, second = dice.sample(["Ann", "Bob", "Cléo", "Dan", "Eve", "王"], 2)
        rows += [[f"{when}{winner} beats {loser}!", winner] for winner, loser in ((first, second), (second, first))]
    return write_table(data, "winners", ["text", "winner"], rows)


SOURCES = {
    "digits-8": digits(8),
    "digits-28": digits(28),
    "squares": squares,
    "dots": dots,
    "pixels": pixels,
    "winners": winners,
}


@pytest.fixture(scope="module")
def dataset(platform: RunningPlatform) -> Iterator[Callable[[str], str]]:
    """`dataset("dots")` is the name of the imported dataset."""
    client, made = platform.client(), []

    def make(source: str) -> str:
        name = f"template-{source}"
        if name not in made:
            client.post("/datasets", {"name": name, "sigid": "local", **SOURCES[source](platform.home / "data")})
            made.append(name)
            client.wait(lambda: client.get(f"/datasets/{name}"), seconds=60)
        return name

    yield make
    for name in made:
        client.delete(f"/datasets/{name}")
    client.close()


def test_no_template_is_forgotten(admin: Client) -> None:
    shipped = {template["name"] for template in admin.get("/modeltemplates") if template["builtin"]}
    assert shipped == {case.template for case in CASES} | ELSEWHERE


@pytest.mark.parametrize("case", CASES, ids=[case.template for case in CASES])
def test_a_template_trains_validates_is_served_and_goes(
    admin: Client, platform: RunningPlatform, dataset: Callable[[str], str], case: Case
) -> None:
    template = named(admin.get("/modeltemplates"), "name", case.template)
    name = f"of-{case.template}"
    model, settings = f"/models/{name}", {**template["hyperparameter"], **case.hyperparameter}
    body = {"name": name, "templatename": case.template, "dataset": dataset(case.dataset), "sig": "local"}
    admin.post("/models", {**body, "accelerator": "Single", "type": "Training", "hyperparameter": settings})
    admin.post(f"{model}/trainings", {"trainName": "first", "dlFramework": case.framework, "clusterSize": 1})
    training = admin.wait(lambda: admin.get(f"{model}/trainings/first")["trainingParameters"], seconds=600)
    assert training["progress"] == 100

    admin.post(f"{model}/validations", {"valName": "check", "trainName": "first", "metrics": [case.metric]})
    validation = admin.wait(lambda: admin.get(f"{model}/validations")[0], seconds=240)
    assert float(named(validation["outPairs"], "name", case.metric)["value"]) >= case.least

    served = f"{name}-served"
    admin.post("/inferences", {"modelName": name, "trainName": "first", "inferenceModelName": served})
    triton = json.loads((platform.home / "inference" / "triton.json").read_text())["http"]
    admin.until(lambda: requests.get(f"{triton}/v2/models/{served}/ready", timeout=10).ok, seconds=120)
    admin.delete(f"/models/{served}")
    for path in (f"{model}/validations/check", f"{model}/trainings/first", model):
        admin.delete(path)
    with pytest.raises(ApiError) as refusal:
        admin.get(model)
    assert refusal.value.status == 404
    admin.until(lambda: not Path(training["path"]).exists(), seconds=20)
