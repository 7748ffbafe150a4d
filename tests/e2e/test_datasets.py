"""Every source type over REST: created, imported by a job, described field by field as the reference says."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from PIL import Image, ImageDraw

pytestmark = [pytest.mark.platform, pytest.mark.slow]

DATA = Path(__file__).resolve().parents[1] / "contract" / "data"
PIXELS = {"imagetype": "Gray", "width": 8, "height": 8}
SPLIT = {"valpercentage": 10, "testpercentage": 10}
REQUESTS: dict[str, dict[str, Any]] = {
    "folders-lmdb": {
        "datasourcetype": "IMAGEFORCLASSIFICATION",
        "dbbackend": "LMDB",
        "imagedetail": {"trainimagepath": "digits", **PIXELS, **SPLIT, "resizetransformation": "crop"},
    },
    "folders-tfrecords": {
        "datasourcetype": "IMAGEFORCLASSIFICATION",
        "dbbackend": "TFRecords",
        "shards": 3,
        "byclass": True,
        "imagedetail": {"trainimagepath": "digits", **PIXELS, "testpercentage": 10, "splitalgorithm": "k-fold 2/5"},
    },
    "lists": {
        "datasourcetype": "IMAGEFORCLASSIFICATION",
        "dbbackend": "LMDB",
        "imagedetail": {
            "isusingtext": True,
            "traintextpath": "lists/train.txt",
            "valtextpath": "lists/val.txt",
            "testtextpath": "lists/test.txt",
            "labeltextpath": "lists/labels.txt",
            "trainimagepath": "digits",
            **PIXELS,
        },
    },
    "vectors": {
        "datasourcetype": "IMGTOVECTOR",
        "dbbackend": "ImageVector",
        "imagedetail": {
            "isusingtext": True,
            "traintextpath": "lists/vectors.txt",
            "trainimagepath": "digits",
            **PIXELS,
            **SPLIT,
        },
    },
    "boxes": {
        "datasourcetype": "IMAGEFOROBJECTDETECTION",
        "dbbackend": "ObjectDetection",
        "trainpath": "boxes",
        "imagedetail": SPLIT,
    },
    "table": {
        "datasourcetype": "CSV",
        "dbbackend": "CSV",
        "trainpath": "tables/train.csv",
        "valpath": "tables/val.csv",
        "testpath": "tables/test.csv",
    },
    "old-lmdb": {
        "datasourcetype": "LMDB",
        "dbbackend": "LMDB",
        "trainpath": "old/lmdb/train",
        "testpath": "old/lmdb/test",
    },
    "old-records": {
        "datasourcetype": "TFRECORDS",
        "dbbackend": "TFRecords",
        "trainpath": "old/records/train",
        "testpath": "old/records/test",
    },
    "other": {"datasourcetype": "OTHER", "dbbackend": "Other", "trainpath": "lists"},
}
LABELS = {
    "folders-lmdb": {str(digit) for digit in range(10)},
    "folders-tfrecords": {str(digit) for digit in range(10)},
    "lists": {"zero", "one"},
    "boxes": {"red", "blue"},
    "old-lmdb": {str(digit) for digit in range(10)},
    "old-records": {str(digit) for digit in range(10)},
}


def write_sources(data: Path) -> None:
    """What the requests name, beside the digits."""
    (data / "lists").mkdir()
    files = {digit: sorted((data / "digits" / str(digit)).iterdir())[:20] for digit in (0, 1)}
    lines = [f"{digit}/{file.name} {digit}\n" for digit, found in files.items() for file in found]
    for split, some in (("train", slice(0, None, 2)), ("val", slice(1, None, 4)), ("test", slice(3, None, 4))):
        (data / "lists" / f"{split}.txt").write_text("".join(lines[some]))
    (data / "lists" / "labels.txt").write_text("zero\none\n")
    (data / "lists" / "vectors.txt").write_text("".join(line.replace("\n", " 0.5\n") for line in lines))
    for folder in ("JPEGImages", "Annotations"):
        (data / "boxes" / folder).mkdir(parents=True)
    for number in range(20):
        image, color = Image.new("RGB", (60, 40), "white"), ("red", "blue")[number % 2]
        ImageDraw.Draw(image).rectangle((10, 5, 29, 24), color)
        image.save(data / "boxes" / "JPEGImages" / f"{number:02d}.jpg")
        corners = "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax>"
        xml = f"<annotation><object><name>{color}</name><bndbox>{corners}</bndbox></object></annotation>"
        (data / "boxes" / "Annotations" / f"{number:02d}.xml").write_text(xml)
    (data / "tables").mkdir()
    for split in ("train", "val", "test"):
        rows = "".join(f"{number},{number / 2},name {number}\n" for number in range(200))
        (data / "tables" / f"{split}.csv").write_text(f"id,half,name\n{rows}")


@pytest.fixture(scope="module")
def details(platform: RunningPlatform) -> dict[str, Any]:
    """Every request, imported."""
    client, data = platform.client(), platform.home / "data"
    write_sources(data)
    for name, request in REQUESTS.items():
        if not name.startswith("old-"):
            client.post("/datasets", {"name": name, "sigid": "local", **request})
    found = {name: await_end(client, name) for name in REQUESTS if not name.startswith("old-")}
    # What an import made is the existing data of others.
    for kind, source in (("lmdb", "folders-lmdb"), ("records", "folders-tfrecords")):
        for split in ("train", "test"):
            shutil.copytree(found[source][f"{split}path"], data / "old" / kind / split)
    for name in ("old-lmdb", "old-records"):
        client.post("/datasets", {"name": name, "sigid": "local", **REQUESTS[name]})
        found[name] = await_end(client, name)
    return found


def await_end(client: Client, name: str) -> Any:
    deadline = time.monotonic() + 60
    while (detail := client.get(f"/datasets/{name}"))["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline, detail
        time.sleep(0.1)
    return detail


def reference(schema: str) -> dict[str, str]:
    with (DATA / "schemas.tsv").open() as file:
        return {row["field"]: row["type"] for row in csv.DictReader(file, delimiter="\t") if row["schema"] == schema}


IS_OF: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int32": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "double": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "[[string]]": lambda value: all(isinstance(text, str) for pair in value for text in pair),
    "ImageDetail": lambda value: isinstance(value, dict),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_field_of_the_reference_is_real(details: dict[str, Any], name: str) -> None:
    detail, request = details[name], REQUESTS[name]
    assert detail["status"] == "FINISHED", detail["statusMessage"]
    for field, kind in reference("DatasetDetail").items():
        assert IS_OF[kind](detail.get(field)), f"{field}: {detail.get(field)!r} is no {kind}"
    for field, kind in reference("ImageDetail").items():
        assert IS_OF[kind](detail["imagedetail"].get(field)), f"imagedetail.{field} is no {kind}"
    assert detail["name"] == name
    assert (detail["datasourcetype"], detail["dbbackend"]) == (request["datasourcetype"], request["dbbackend"])
    assert (detail["signame"], detail["createUser"]) == ("local", "Admin")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", detail["submittedtime"])
    assert detail["runduration"] > 0
    assert detail["size"] > 0
    assert detail["driverid"]
    assert detail["sparkappid"]
    assert len(detail["contentHash"]) == 64
    assert (detail["shards"], detail["byclass"]) == (request.get("shards", 1), request.get("byclass", False))
    assert Path(detail["trainpath"]).exists()
    for field, wanted in request.get("imagedetail", {}).items():
        given = detail["imagedetail"][field]
        assert given == wanted or (field.endswith("path") and given.endswith(wanted)), field
    assert {label for label, _ in detail["trainlabels"]} == LABELS.get(name, set())
    assert all(int(count) > 0 for _, count in detail["trainlabels"])


def test_the_job_of_an_import_is_an_application(details: dict[str, Any], admin: Client) -> None:
    for name, detail in details.items():
        found = admin.get("/scheduler/applications", applicationid=detail["sparkappid"])
        assert [one["state"] for one in found] == ["FINISHED"], name


def test_slices_of_a_table(details: dict[str, Any], admin: Client) -> None:
    answer = admin.get("/datasets/table/csvs", type="Train", start="150", length="2")
    assert answer["columns"] == ["id", "half", "name"]
    assert answer["index"] == ["150", "151"]
    assert answer["data"] == [[150, 75, "name 150"], [151, 75.5, "name 151"]]
    assert json.loads(answer["JSONString"]) == {
        "columns": answer["columns"],
        "index": [150, 151],
        "data": answer["data"],
    }


def test_images_with_their_boxes(details: dict[str, Any], admin: Client) -> None:
    counts = {}
    for split in ("training", "validation", "test"):
        images = admin.get("/datasets/boxes/objectimages", type=split, start="0", length="100")
        counts[split] = len(images)
        for image in images:
            assert Path(image["path"]).name == image["name"]
            labels = json.loads(image["labels"])
            color = ("red", "blue")[int(image["name"][:2]) % 2]
            assert labels == [{"label": color, "bbox": [10, 5, 30, 25]}]
    assert counts == {"training": 16, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("table/csvs", {}, 400, "type"),
        ("table/csvs", {"type": "half"}, 400, "training, validation, test"),
        ("table/csvs", {"type": "test", "start": "-1"}, 400, "start"),
        ("table/csvs", {"type": "test", "length": "0"}, 400, "length"),
        ("table/csvs", {"type": "test", "length": "many"}, 400, "length"),
        ("boxes/csvs", {"type": "test"}, 400, "CSV"),
        ("table/objectimages", {"type": "test"}, 400, "IMAGEFOROBJECTDETECTION"),
        ("boxes/objectimages", {"type": "none"}, 400, "training, validation, test"),
        ("nothing/csvs", {"type": "test"}, 404, "nothing"),
        ("nothing/objectimages", {"type": "test"}, 404, "nothing"),
    ],
)
def test_slices_that_cannot_be(
    details: dict[str, Any], admin: Client, path: str, query: dict[str, str], status: int, words: str
) -> None:
    with pytest.raises(ApiError) as caught:
        admin.get(f"/datasets/{path}", **query)
    assert caught.value.status == status
    assert words in caught.value.message


def test_deleting_leaves_the_source(details: dict[str, Any], platform: RunningPlatform, admin: Client) -> None:
    data = platform.home / "data"
    before = sorted(data.rglob("*"))
    for name in details:
        admin.delete(f"/datasets/{name}")
    folders = [platform.home / "datasets" / detail["uid"] for detail in details.values()]
    deadline = time.monotonic() + 20
    while any(folder.exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert sorted(data.rglob("*")) == before
    assert not any(detail["name"] in details for detail in admin.get("/datasets"))
