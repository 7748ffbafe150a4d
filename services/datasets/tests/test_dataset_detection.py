"""Images with boxes: both layouts, splits, hostile sources, and slices of what was imported."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from dataset_fakes import FakeJobs, FakeModels
from datasets_service.detection import catalog, coco, voc
from datasets_service.detection.json_stream import CHUNK_BYTES, JsonError, JsonObject
from datasets_service.detection.records import read_object_images
from datasets_service.domain.dataset import JobFacts
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.splitting import shares
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.base import ImportRefusedError
from datasets_service.importers.registry import importer_for
from datasets_service.sources import cores
from datasets_service.storage.files import DiskSources
from datasets_service.usecases.slices import SliceRequest
from datasets_service.wiring import build
from datasets_service.worker.import_dataset import import_dataset
from dlmesh.datasets.v1 import datasets_pb2 as pb
from dlmesh.datasets.v1 import datasets_pb2_grpc
from PIL import Image
from servicekit.errors import Code, ServiceError
from servicekit.identity import acting_as
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now
from testkit.services import ALICE, collect, running, settings_for

CLASSES = ("cat", "dog", "owl")


@dataclass(frozen=True)
class Drawn:
    """A picture to write; boxes are (label, xmin, ymin, xmax, ymax) in pixels from 0, far edges exclusive."""

    name: str
    boxes: tuple[tuple[str, int, int, int, int], ...]
    size: tuple[int, int] = (64, 48)
    flagged: bool = False


def drawings(count: int, *, prefix: str = "") -> list[Drawn]:
    """Every tenth has no box; owls are rare."""
    made = []
    for index in range(count):
        dice = random.Random(index)
        boxes = []
        for _ in range(0 if index % 10 == 9 else dice.randint(1, 3)):
            left, top = dice.randint(0, 40), dice.randint(0, 30)
            label = "owl" if index % 7 == 3 else dice.choice(CLASSES[:2])
            boxes.append((label, left, top, left + dice.randint(1, 20), top + dice.randint(1, 15)))
        made.append(Drawn(f"{prefix}{index:06d}.jpg", tuple(boxes), (60 + index % 5, 50), index % 4 == 1))
    return made


def write_picture(path: Path, drawn: Drawn) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(drawn.size, 40 + len(drawn.boxes)).convert("RGB").save(path, quality=70)


def write_voc(root: Path, drawn: Sequence[Drawn], lists: Mapping[str, Sequence[str]] | None = None) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for one in drawn:
        write_picture(root / "JPEGImages" / one.name, one)
        annotation = ET.Element("annotation")
        ET.SubElement(annotation, "filename").text = one.name
        for label, xmin, ymin, xmax, ymax in one.boxes:
            entry = ET.SubElement(annotation, "object")
            ET.SubElement(entry, "name").text = label
            ET.SubElement(entry, "difficult").text = str(int(one.flagged))
            box = ET.SubElement(entry, "bndbox")
            # The far corner first: the order is nowhere promised.
            for corner, value in (("xmax", xmax), ("ymax", ymax), ("xmin", xmin + 1), ("ymin", ymin + 1)):
                ET.SubElement(box, corner).text = str(value)
        ET.ElementTree(annotation).write(root / "Annotations" / Path(one.name).with_suffix(".xml"))
    for name, stems in (lists or {}).items():
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{stem}\n" for stem in stems))
    return root


def coco_content(drawn: Sequence[Drawn]) -> dict[str, Any]:
    ids = {label: 10 + index for index, label in enumerate(CLASSES)}
    return {
        "info": {"year": 2026, "description": "drawn"},
        "annotations": [
            {
                "id": 100 * number + index,
                "image_id": number,
                "category_id": ids[label],
                "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                "iscrowd": int(one.flagged),
                "segmentation": [[0.5] * 8],
            }
            for number, one in enumerate(drawn)
            for index, (label, xmin, ymin, xmax, ymax) in enumerate(one.boxes)
        ],
        "categories": [{"id": ids[label], "name": label} for label in reversed(CLASSES)],
        "images": [
            {"id": number, "file_name": one.name, "width": one.size[0], "height": one.size[1]}
            for number, one in enumerate(drawn)
        ],
    }


def write_coco(file: Path, drawn: Sequence[Drawn], folder: Path | None = None, **changes: Any) -> Path:
    for one in drawn:
        write_picture((folder or file.parent) / one.name, one)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_content(drawn) | changes))
    return file


@dataclass
class Work:
    """A data root and what imports of it make."""

    home: Path
    runs: list[ImportSpec] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.home / "data"

    def check(self, **fields: Any) -> ImportOptions:
        request = DatasetRequest("shapes", "IMAGEFOROBJECTDETECTION", "ObjectDetection", "local", **fields)
        return importer_for(SourceType.IMAGES_FOR_DETECTION).check(request, DiskSources((self.data,)))

    def spec(self, **fields: Any) -> ImportSpec:
        uid = f"run{len(self.runs)}"
        spec = ImportSpec(
            uid=uid,
            name="shapes",
            source_type=SourceType.IMAGES_FOR_DETECTION,
            backend=Backend.OBJECT_DETECTION,
            options=self.check(**fields),
            data_roots=(str(self.data),),
            staging=str(self.home / "importing" / uid),
            target=str(self.home / uid),
        )
        Path(spec.staging).mkdir(parents=True)
        self.runs.append(spec)
        return spec

    def run(self, **fields: Any) -> dict[str, Any]:
        return import_dataset(self.spec(**fields), lambda done, total: None)

    def refusal(self, **fields: Any) -> str:
        spec = self.spec(**fields)
        with pytest.raises(ImportRefusedError) as refused:
            import_dataset(spec, lambda done, total: None)
        assert not Path(spec.target).exists()
        return str(refused.value)

    def wrong(self, **fields: Any) -> tuple[str, str]:
        """The field and what is allowed."""
        with pytest.raises(ServiceError) as refused:
            self.check(**fields)
        assert refused.value.code is Code.INVALID_ARGUMENT
        return refused.value.metadata["field"], refused.value.metadata["allowed"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "data").mkdir()
    return Work(tmp_path)


def records(description: Mapping[str, Any], split: str = "train") -> list[dict[str, Any]]:
    if split not in description["splits"]:
        return []
    file = Path(description["splits"][split]["path"]) / "annotations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def names(description: Mapping[str, Any], split: str) -> set[str]:
    return {record["name"] for record in records(description, split)}


def boxes_of(description: Mapping[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        record["name"]: [(box["label"], *box["bbox"]) for box in record["boxes"]]
        for split in ("train", "val", "test")
        for record in records(description, split)
    }


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_both_layouts_give_the_boxes_that_were_drawn(work: Work) -> None:
    drawn = drawings(30)
    write_voc(work.data / "voc", drawn)
    write_coco(work.data / "coco" / "labels.json", drawn)
    from_voc, from_coco = work.run(train_path="voc"), work.run(train_image_path="coco/labels.json")
    expected = {one.name: [(label, *map(float, box)) for label, *box in one.boxes] for one in drawn}
    assert boxes_of(from_voc) == boxes_of(from_coco) == expected
    assert from_voc["labels"] == from_coco["labels"] == list(CLASSES)
    counts = {label: sum(box[0] == label for one in drawn for box in one.boxes) for label in CLASSES}
    assert from_voc["splits"]["train"]["labels"] == from_coco["splits"]["train"]["labels"] == counts
    assert from_voc["splits"]["train"]["count"] == 30
    for description, folder in ((from_voc, "voc/JPEGImages"), (from_coco, "coco")):
        target = Path(description["splits"]["train"]["path"]).parent
        assert (target / "labels.txt").read_text() == "cat\ndog\nowl\n"
        for record, one in zip(records(description), drawn, strict=True):
            assert record["path"] == str(work.data / folder / one.name)
            assert (record["width"], record["height"]) == one.size
        images = sum((work.data / folder / one.name).stat().st_size for one in drawn)
        assert description["size_bytes"] == images
        assert not list(target.rglob("*.jpg"))


def test_flags_are_kept(work: Work) -> None:
    drawn = [one for one in drawings(12) if one.boxes]
    write_voc(work.data / "voc", drawn)
    write_coco(work.data / "coco" / "labels.json", drawn)
    for source, flag, other in (("voc", "difficult", "crowd"), ("coco", "crowd", "difficult")):
        for record, one in zip(records(work.run(train_path=source)), drawn, strict=True):
            assert {box[flag] for box in record["boxes"]} == {one.flagged}
            assert {box[other] for box in record["boxes"]} == {False}


def test_labels_of_coco_are_in_the_order_of_their_ids(work: Work) -> None:
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "owl"}, {"id": 2, "name": "unseen"}]
    write_coco(
        work.data / "labels.json", [Drawn("a.jpg", ())], categories=categories, annotations=[annotation(0, category=3)]
    )
    description = work.run(train_path="labels.json")
    assert description["labels"] == ["owl", "unseen", "cat"]
    assert description["splits"]["train"]["labels"] == {"owl": 0, "unseen": 0, "cat": 1}


def annotation(image: int, *, category: object = 10, bbox: object = (1, 2, 3, 4)) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox}


@pytest.mark.parametrize(
    ("json_file", "images", "source"),
    [
        ("set/labels.json", "set/images", "set"),
        ("set/annotations/instances_train2017.json", "set/train2017", "set"),
        ("set/annotations/instances_train2017.json", "set/images/train2017", "set"),
        ("set/annotations/instances_train2017.json", "set", "set/annotations/instances_train2017.json"),
        ("set/annotations/anything.json", "set/images", "set/annotations"),
    ],
)
def test_where_coco_images_may_lie(work: Work, json_file: str, images: str, source: str) -> None:
    drawn = drawings(5)
    write_coco(work.data / json_file, drawn, work.data / images)
    (work.data / "set" / "notes.json").write_text('{"license": "free"}')
    description = work.run(train_path=source)
    assert [record["path"] for record in records(description)] == [str(work.data / images / one.name) for one in drawn]


def test_coco_files_of_several_splits(work: Work) -> None:
    train, val = drawings(8), drawings(4, prefix="v")
    write_coco(work.data / "set/annotations/instances_train2017.json", train, work.data / "set/train2017")
    write_coco(work.data / "set/annotations/instances_val2017.json", val, work.data / "set/val2017")
    description = work.run(train_path="set", test_percentage=25)
    assert names(description, "val") == {one.name for one in val}
    assert len(names(description, "test")) == 2
    assert names(description, "train") | names(description, "test") == {one.name for one in train}
    assert work.wrong(train_path="set", validation_percentage=10)[0] == "imagedetail.valpercentage"
    # A source of its own comes before the file in the training source.
    own = work.run(train_path="set", validation_path="set/annotations/instances_val2017.json")
    assert names(own, "val") == {one.name for one in val}
    (work.data / "set/annotations/instances_train2018.json").write_text('{"images": []}')
    assert "are for train" in work.wrong(train_path="set")[1]


def test_a_coco_file_may_come_in_any_order_and_size(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_service.detection.json_stream.CHUNK_BYTES", 7)
    drawn = [*drawings(6), Drawn("gr\u00fc\u00df \U0001f600.jpg", (("cat", 1, 1, 9, 9),))]
    content = coco_content(drawn)
    hashes = set()
    for ensure_ascii, order in ((True, list(content)), (False, sorted(content)), (False, sorted(content)[::-1])):
        file = work.data / "labels.json"
        write_coco(file, drawn)
        file.write_text(json.dumps({name: content[name] for name in order}, ensure_ascii=ensure_ascii, indent=1))
        for one in drawn:
            Image.new("RGB", one.size, "red").save(work.data / one.name)
        description = work.run(train_path="labels.json")
        hashes.add(description["content_hash"])
        assert boxes_of(description)[drawn[-1].name] == [("cat", 1, 1, 9, 9)]
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'{' is missing"),
        ("[1]", "'{' is missing"),
        ('{"a": 1', "'}' is missing"),
        ('{"a" 1}', "':' is missing"),
        ("{a: 1}", "Expecting value"),
        ("{1: 1}", "a name in quotes"),
        ('{"images": [1, 2', "']' is missing"),
        ('{"images": [{"id": 1]}', "Expecting ',' delimiter"),
        ('{"images": [' + "[" * 200_000, "nested too deeply"),
        ('{"images": [NaN, 1' + "0" * 5000, "integer string conversion"),
        ('{"images": ["' + "x" * 600_000, "no value of at most 500000 characters"),
        ('{"images": ["\udcff"]}', "not UTF-8"),
    ],
)
def test_what_is_no_json_says_where(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "some.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with file.open("rb") as content, pytest.raises(JsonError, match=problem) as error:
        content_of = JsonObject(content, 500_000)
        for name, is_array in content_of.members():
            if name == "images" and is_array:
                list(content_of.elements())
    assert "near character" in str(error.value)


def test_a_number_at_the_end_of_what_was_read_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    start = '{"blank": "'
    # The number lies across the end of the first chunk.
    file.write_text(start + " " * (CHUNK_BYTES - len(start) - 18) + '", "images": [123456, 7]}')
    with file.open("rb") as content:
        json_object = JsonObject(content, 2 * CHUNK_BYTES)
        found = {name: list(json_object.elements()) for name, is_array in json_object.members() if is_array}
    assert found == {"images": [123456, 7]}


# --- splits


def voc_lists(count: int) -> dict[str, list[str]]:
    stems = [f"{index:06d}" for index in range(count)]
    return {"train": stems[:6], "val": stems[6:8], "trainval": stems[:8], "test": stems[8:]}


def test_voc_lists_are_the_splits(work: Work) -> None:
    write_voc(work.data / "voc", drawings(12), voc_lists(11))
    description = work.run(train_path="voc")
    counts = {split: described["count"] for split, described in description["splits"].items()}
    assert counts == {"train": 6, "val": 2, "test": 3}
    assert names(description, "val") == {"000006.jpg", "000007.jpg"}
    # Nobody listed the twelfth.
    assert "000011.jpg" not in boxes_of(description)


def test_trainval_is_for_training_as_far_as_it_is_not_for_validation(work: Work) -> None:
    lists = voc_lists(10)
    del lists["train"]
    write_voc(work.data / "voc", drawings(10), lists)
    description = work.run(train_path="voc")
    counts = {split: described["count"] for split, described in description["splits"].items()}
    assert counts == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(
    "fields", [{"validation_percentage": 30}, {"split_algorithm": "k-fold 1/3"}, {"split_algorithm": "by-name"}]
)
def test_percentages_come_before_voc_lists(work: Work, fields: dict[str, Any]) -> None:
    write_voc(work.data / "voc", drawings(30), voc_lists(12))
    description = work.run(train_path="voc", **fields)
    assert len(boxes_of(description)) == 30


def test_splits_with_sources_of_their_own(work: Work) -> None:
    write_voc(work.data / "voc", drawings(12), voc_lists(12))
    write_voc(work.data / "more", drawings(4, prefix="m"), {"test": ["m000001", "m000002"]})
    write_coco(work.data / "coco" / "labels.json", drawings(3, prefix="c"))
    description = work.run(train_path="voc", validation_path="coco", test_image_path="more")
    assert names(description, "train") == {f"{index:06d}.jpg" for index in range(6)}
    assert names(description, "val") == {"c000000.jpg", "c000001.jpg", "c000002.jpg"}
    assert names(description, "test") == {"m000001.jpg", "m000002.jpg"}


def test_a_class_that_training_has_not_is_refused(work: Work) -> None:
    write_voc(work.data / "voc", [Drawn("a.jpg", (("cat", 1, 1, 5, 5),))])
    write_voc(work.data / "more", [Drawn("b.jpg", (("zebra", 1, 1, 5, 5),))])
    assert "classes that training has not: zebra" in work.refusal(train_path="voc", validation_path="more")


def test_an_image_in_two_splits_is_refused(work: Work) -> None:
    write_voc(work.data / "voc", drawings(12), voc_lists(12) | {"val": ["000000", "000007"]})
    assert "'000000' is in the list for val too" in work.refusal(train_path="voc")
    write_coco(work.data / "coco" / "labels.json", drawings(4))
    assert "is an image of two splits" in work.refusal(train_path="coco", test_path="coco/labels.json")


def test_hold_out_takes_its_share_of_rare_classes(work: Work) -> None:
    drawn = drawings(140)
    write_voc(work.data / "voc", drawn)
    description = work.run(train_path="voc", validation_percentage=20, test_percentage=10)
    counts = {split: described["count"] for split, described in description["splits"].items()}
    assert counts == {"train": 98, "val": 28, "test": 14}
    owls = {
        split: sum("owl" in [box["label"] for box in r["boxes"]] for r in records(description, split))
        for split in counts
    }
    total = sum(owls.values())
    assert abs(owls["val"] - total * 0.2) <= 1
    assert abs(owls["test"] - total * 0.1) <= 1
    empty = sum(not record["boxes"] for record in records(description, "val"))
    assert empty in (2, 3)


@pytest.mark.parametrize("algorithm", ["hold-out", "random"])
def test_an_image_stays_on_its_side_when_others_come(work: Work, algorithm: str) -> None:
    fields = {"train_path": "voc", "validation_percentage": 20, "split_algorithm": algorithm}
    write_voc(work.data / "voc", drawings(100))
    before = work.run(**fields)
    for name in ("voc/JPEGImages/000000.jpg", "voc/Annotations/000000.xml"):
        (work.data / name).unlink()
    after = work.run(**fields)
    kept = names(before, "val") & names(after, "val")
    assert len(names(before, "val")) == 20
    assert len(kept) >= 18
    other = work.run(**fields, split_seed=1)
    assert len(names(other, "val") & names(before, "val")) < 15


def test_folds_partition_the_images(work: Work) -> None:
    write_coco(work.data / "labels.json", drawings(31))
    folds = [work.run(train_path="labels.json", split_algorithm=f"k-fold {fold}/3") for fold in (1, 2, 3)]
    held_out = [names(description, "val") for description in folds]
    assert sorted(map(len, held_out)) == [10, 10, 11]
    assert len(set.union(*held_out)) == 31
    for description in folds:
        assert len(names(description, "train") | names(description, "val")) == 31
        owls = sum("owl" in [box["label"] for box in record["boxes"]] for record in records(description, "val"))
        assert owls in (1, 2)
    with_test = work.run(train_path="labels.json", split_algorithm="k-fold 1/3", test_percentage=10)
    assert {split: described["count"] for split, described in with_test["splits"].items()} == {
        "train": 18,
        "val": 10,
        "test": 3,
    }


def test_names_say_the_split(work: Work) -> None:
    drawn = [Drawn(name, (("cat", 1, 1, 9, 9),)) for name in ("train/a.jpg", "val/a.jpg", "b_test_1.jpg", "c.jpg")]
    write_coco(work.data / "labels.json", drawn)
    description = work.run(train_path="labels.json", split_algorithm="by-name")
    assert names(description, "train") == {"train/a.jpg", "c.jpg"}
    assert names(description, "val") == {"val/a.jpg"}
    assert names(description, "test") == {"b_test_1.jpg"}


def test_shares_leave_one_of_each() -> None:
    assert shares({"a": 10, "b": 1}, 30, {"a": 0, "b": 0}) == {"a": 3, "b": 0}
    assert shares({"a": 10, "b": 2}, 90, {"a": 5, "b": 0}) == {"a": 4, "b": 1}
    assert shares({"a": 10}, 0, {"a": 0}) == {"a": 0}
    assert shares({"a": 3}, 1, {"a": 0}) == {"a": 1}


# --- what is refused while the caller waits


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({}, "imagedetail.trainimagepath", "an existing path"),
        ({"train_path": "nowhere"}, "trainpath", "an existing path"),
        ({"train_path": "empty"}, "trainpath", "JPEGImages and Annotations"),
        ({"train_path": "empty"}, "trainpath", "a JSON file with images, annotations and categories"),
        ({"train_image_path": "empty/notes.json"}, "imagedetail.trainimagepath", "it is no COCO JSON file"),
        ({"train_path": "two"}, "trainpath", "several COCO files: a.json, b.json"),
        ({"train_path": "out"}, "trainpath", "JPEGImages leads out of the data roots"),
        ({"train_path": "odd"}, "trainpath", "instances_mine.json names none of train, val and test"),
        ({"train_path": "voc", "validation_path": "empty"}, "valpath", "JPEGImages"),
        ({"train_path": "voc", "test_path": "/etc"}, "testpath", "an existing path"),
        ({"train_path": "voc", "test_path": "splits"}, "testpath", "has one for test"),
        ({"train_path": "voc", "width": 10}, "imagedetail.width", "0: images for object detection keep"),
        ({"train_path": "voc", "height": -1}, "imagedetail.height", "0: images"),
        ({"train_path": "voc", "plugin": "a.py"}, "plugin", "nothing"),
        ({"train_path": "voc", "mean_file": "a.npy"}, "meanfilepath", "nothing"),
        ({"train_path": "voc", "label_list": "a.txt"}, "imagedetail.labeltextpath", "nothing"),
        ({"train_path": "voc", "uses_text_lists": True}, "imagedetail.isusingtext", "false"),
        ({"train_path": "voc", "color_mode": "sepia"}, "imagedetail.imagetype", "Color, Gray"),
        ({"train_path": "voc", "resize_mode": "tear"}, "imagedetail.resizetransformation", "squash"),
        ({"train_path": "voc", "validation_percentage": 101}, "imagedetail.valpercentage", "0 to 100"),
        ({"train_path": "voc", "split_algorithm": "k-fold 6/5"}, "imagedetail.splitalgorithm", "k-fold F/K"),
        ({"train_path": "splits", "split_algorithm": "by-name"}, "imagedetail.splitalgorithm", "another one"),
    ],
)
def test_a_wrong_field_is_named(work: Work, fields: dict[str, Any], field: str, allowed: str) -> None:
    write_voc(work.data / "voc", [])
    (work.data / "empty").mkdir()
    (work.data / "empty" / "notes.json").write_text('{"images": "none", "annotations": {}}')
    for name in ("two/a", "two/b", "odd/annotations/instances_mine", "odd/annotations/instances_train"):
        write_coco(work.data / f"{name}.json", [])
    for split in ("train", "val"):
        write_coco(work.data / f"splits/annotations/instances_{split}.json", [])
    write_voc(work.data / "out", [])
    (work.data / "out" / "JPEGImages").rmdir()
    (work.home / "elsewhere").mkdir()
    (work.data / "out" / "JPEGImages").symlink_to(work.home / "elsewhere")
    assert work.wrong(**fields)[0] == field
    assert allowed in work.wrong(**fields)[1]


def test_a_check_does_not_read_what_is_large(work: Work) -> None:
    file = work.data / "labels.json"
    with file.open("w") as content:
        content.write('{"junk": [')
        content.truncate(50 * 1024**3)
    started = time.monotonic()
    assert work.wrong(train_path="labels.json")[0] == "trainpath"
    assert time.monotonic() - started < 5
    content = work.data / "pipe.json"
    os.mkfifo(content)
    assert work.wrong(train_path="pipe.json")[0] == "trainpath"


# --- hostile and broken sources

XML = """<annotation><object><name>{name}</name><bndbox><xmin>{xmin}</xmin><ymin>2</ymin><xmax>9</xmax>
<ymax>9</ymax></bndbox></object></annotation>"""
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 if n else str()};" * 10}">' for n in range(9))
    + "]><annotation><object><name>&a8;</name></object></annotation>"
)
READS_A_FILE = (
    '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        (BOMB, "documents with a DOCTYPE are not read"),
        (READS_A_FILE, "documents with a DOCTYPE are not read"),
        (BOMB.encode("utf-16"), "DOCTYPE|no XML"),
        ("<annotation><object>", "no XML"),
        ("", "no XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "no XML"),
        (XML.format(name=" ", xmin=1), "object 1 has no name"),
        (XML.format(name="x" * 129, xmin=1), "up to 128 printable"),
        (XML.format(name="two\nlines", xmin=1), "up to 128 printable"),
        (XML.format(name="cat", xmin="left"), r"object 1 \(cat\) has no bndbox of four numbers"),
        (XML.format(name="cat", xmin="nan"), "four finite numbers"),
        (XML.format(name="cat", xmin="1e999"), "four finite numbers"),
        ("<annotation><object><name>cat</name></object></annotation>", "no bndbox"),
        ("<a>" + " " * voc.MAX_XML_BYTES, "is larger than"),
    ],
)
def test_a_broken_annotation_leaves_its_image_out(work: Work, xml: str | bytes, problem: str) -> None:
    write_voc(work.data / "voc", drawings(30))
    file = work.data / "voc" / "Annotations" / "000003.xml"
    file.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    description = work.run(train_path="voc")
    assert "000003.jpg" not in boxes_of(description)
    assert description["unreadable_count"] == 1
    (named,) = description["unreadable"]
    assert named.startswith("000003.jpg (Annotations/000003.xml: ")
    assert re.search(problem, named)


def test_links_and_pipes_that_leave_the_roots_are_not_read(work: Work) -> None:
    write_voc(work.data / "voc", drawings(61))
    outside = work.home / "secret.jpg"
    write_picture(outside, Drawn("secret.jpg", ()))
    inside = work.data / "shared.jpg"
    write_picture(inside, Drawn("shared.jpg", ()))
    folder = work.data / "voc"
    targets = {
        "JPEGImages/000001.jpg": outside,
        "Annotations/000002.xml": Path("/etc/passwd"),
        "JPEGImages/000003.jpg": inside,
    }
    for name, target in targets.items():
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    (folder / "JPEGImages" / "000004.jpg").unlink()
    os.mkfifo(folder / "JPEGImages" / "000004.jpg")
    description = work.run(train_path="voc")
    assert sorted(description["unreadable"]) == [
        "000001.jpg (lies outside the data roots)",
        "000002.jpg (Annotations/000002.xml: lies outside the data roots)",
        "000004.jpg (is not a file)",
    ]
    assert "000003.jpg" in boxes_of(description)


def test_a_list_that_leaves_the_roots_is_not_read(work: Work) -> None:
    write_voc(work.data / "voc", drawings(3), {"train": []})
    file = work.data / "voc" / "ImageSets" / "Main" / "train.txt"
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert work.refusal(train_path="voc").endswith("train.txt cannot be read: lies outside the data roots")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../../secret.jpg", "lies outside the data roots"),
        ("{home}/secret.jpg", "lies outside the data roots"),
        ("/etc/passwd", "lies outside the data roots"),
        ("link/secret.jpg", "lies outside the data roots"),
        ("gone.jpg", "does not exist"),
        ("000001.jpg/x", "cannot be opened|does not exist"),
        ("x" * 5000, "cannot be opened|does not exist"),
        ("000001.jpg", "it is listed twice"),
        ("./000001.jpg", "it is listed twice"),
        ("", "it has no usable file_name"),
        ("nul\0.jpg", "it has no usable file_name"),
        ("\ud800.jpg", "it has no usable file_name"),
        (7, "it has no usable file_name"),
        (".", "is not a file"),
    ],
)
def test_file_names_of_coco_stay_inside(work: Work, name: object, problem: str) -> None:
    drawn = drawings(40)
    file = write_coco(work.data / "coco" / "labels.json", drawn)
    write_picture(work.home / "secret.jpg", Drawn("secret.jpg", ()))
    (work.data / "coco" / "link").symlink_to(work.home)
    content = json.loads(file.read_text())
    named = name.format(home=work.home) if isinstance(name, str) else name
    content["images"].append({"id": 1000, "file_name": named})
    file.write_text(json.dumps(content))
    description = work.run(train_path="coco")
    assert description["splits"]["train"]["count"] == 40
    assert description["unreadable_count"] == 1
    assert re.search(problem, description["unreadable"][0])


def test_an_absolute_file_name_inside_the_roots_is_fine(work: Work) -> None:
    write_picture(work.data / "pictures" / "a.jpg", Drawn("a.jpg", ()))
    images = [{"id": 0, "file_name": str(work.data / "pictures" / "a.jpg")}]
    write_coco(work.data / "coco" / "labels.json", [], images=images, annotations=[annotation(0)])
    assert records(work.run(train_path="coco"))[0]["path"] == str(work.data / "pictures" / "a.jpg")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_id": 999}, "image 999 (it has annotations and is not listed)"),
        ({"category_id": 99}, "category 99 is unknown"),
        ({"category_id": "10"}, 'category "10" is unknown'),
        ({"bbox": None}, "annotations[0] of labels.json has no bbox of four finite numbers"),
        ({"bbox": [1, 2, 3]}, "no bbox"),
        ({"bbox": [1, 2, 3, "4"]}, "no bbox"),
        ({"bbox": [1, 2, 3, True]}, "no bbox"),
        ({"bbox": [1, 2, 3, 10**400]}, "no bbox"),
        ({"bbox": [1, 2, 3, float("nan")]}, "no bbox"),
    ],
)
def test_a_broken_annotation_of_coco_is_named(work: Work, changes: dict[str, Any], problem: str) -> None:
    file = write_coco(work.data / "labels.json", drawings(30))
    content = json.loads(file.read_text())
    content["annotations"][0] |= changes
    file.write_text(json.dumps(content))
    description = work.run(train_path="labels.json")
    assert description["unreadable_count"] == 1
    assert problem in description["unreadable"][0]
    assert description["splits"]["train"]["count"] == (30 if "image_id" in changes else 29)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "images[1]: id 1 is there twice"),
        ({"images": [{"file_name": "a"}]}, "images[0]: id is no whole number or text"),
        ({"images": [{"id": True}]}, "images[0]: id is no whole number"),
        ({"images": [{"id": "\ud800"}]}, "images[0]: id is no whole number"),
        ({"images": ["a.jpg"]}, "images[0]: id is no whole number"),
        ({"images": {}}, "images: no array"),
        ({"annotations": [{"category_id": 10}]}, "annotations[0]: image_id is no whole"),
        ({"annotations": [{"image_id": 0, "category_id": 1.5}]}, "annotations[0]: category_id is no whole"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "categories[1]: id 1 or name 'b' is there"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a "}]}, "categories[1]: id 2 or name 'a ' is"),
        ({"categories": [{"id": 1, "name": ""}]}, "categories[0]: its name is not"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, "categories[0]: its name is not"),
        ({"categories": []}, "training has 0 classes"),
        ({"annotations": []}, "no image for training has a box"),
    ],
)
def test_a_coco_file_that_contradicts_itself_is_refused(work: Work, changes: dict[str, Any], problem: str) -> None:
    write_coco(work.data / "labels.json", drawings(3), **changes)
    assert problem in work.refusal(train_path="labels.json")


def test_a_coco_file_that_is_too_large_or_lists_nothing_is_refused(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_coco(work.data / "labels.json", drawings(3))
    with monkeypatch.context() as patch:
        patch.setattr(coco, "MAX_JSON_BYTES", 100)
        assert "bytes; at most 100 are read" in work.refusal(train_path="labels.json")
    content = json.loads(file.read_text())
    del content["images"]
    file.write_text(json.dumps(content))
    assert "lists no images" in work.refusal(train_path="labels.json")
    file.write_text(json.dumps(content)[:-20])
    assert "near character" in work.refusal(train_path="labels.json")


def test_damaged_images_are_left_out_and_named(work: Work) -> None:
    write_voc(work.data / "voc", drawings(100))
    folder = work.data / "voc" / "JPEGImages"
    damage(folder / "000001.jpg")
    (folder / "000002.jpg").write_bytes(b"no picture")
    (folder / "000003.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    # 10,000 x 10,000 pixels in a few kilobytes.
    Image.new("1", (10_000, 10_000)).save(folder / "000004.jpg", "PNG")
    (folder / "000005.jpg").unlink()
    description = work.run(train_path="voc")
    assert description["unreadable_count"] == 5
    reasons = "\n".join(sorted(description["unreadable"]))
    for reason in (
        "000001.jpg (OSError: image file is truncated",
        "000002.jpg (UnidentifiedImageError",
        "000003.jpg (UnidentifiedImageError",
        "000004.jpg (10000 x 10000 pixels; at most 25165824 are decoded)",
        "Annotations/000005.xml (JPEGImages has no image of this name)",
    ):
        assert reason in reasons
    assert len(boxes_of(description)) == 95
    damage(folder / "000006.jpg")
    assert "more than 5% of 100 images cannot be used: 000001.jpg" in work.refusal(train_path="voc")


def test_images_of_one_name_and_names_that_are_no_text(work: Work) -> None:
    write_voc(work.data / "voc", drawings(60))
    folder = work.data / "voc" / "JPEGImages"
    Image.new("L", (9, 9)).save(folder / "000001.png")
    Image.new("L", (9, 9)).save(os.fsencode(folder) + b"/\xff.png")
    (folder / ".hidden.jpg").write_text("")
    (folder / "Thumbs.db").write_text("")
    description = work.run(train_path="voc")
    assert sorted(description["unreadable"]) == [
        "'\\udcff.png' (its name is not UTF-8)",
        "000001 (JPEGImages has two images of this name)",
    ]
    assert description["splits"]["train"]["count"] == 59


def test_listed_images_that_are_not_there_are_named(work: Work) -> None:
    stems = [f"{index:06d}" for index in range(40)]
    write_voc(work.data / "voc", drawings(40), {"train": [*stems, "../Annotations/000001"], "val": []})
    description = work.run(train_path="voc")
    assert description["unreadable"] == ["../Annotations/000001 (JPEGImages has no image of this name)"]
    (work.data / "voc" / "ImageSets" / "Main" / "train.txt").write_text("x" * 5000)
    assert "line of more than 4096 bytes" in work.refusal(train_path="voc")


def test_boxes_are_clipped_and_those_without_area_dropped(work: Work) -> None:
    boxes = [
        (-10, -10, 20, 20),
        (50, 40, 500, 500),
        (10, 10, 0, 5),
        (100, 0, 5, 5),
        (1, 1, -5, 5),
        (0.25, 0.1, 0.2, 0.2),
    ]
    annotations = [annotation(0, bbox=list(box)) for box in boxes]
    write_coco(work.data / "coco" / "labels.json", [Drawn("a.jpg", ())], annotations=annotations)
    description = work.run(train_path="coco")
    (record,) = records(description)
    assert [box["bbox"] for box in record["boxes"]] == [
        [0.0, 0.0, 10.0, 10.0],
        [50.0, 40.0, 64.0, 48.0],
        [0.25, 0.1, 0.45, 0.3],
    ]
    assert description["empty_boxes"] == 3


def test_an_image_may_be_without_annotation(work: Work) -> None:
    write_voc(work.data / "voc", drawings(5))
    (work.data / "voc" / "Annotations" / "000000.xml").unlink()
    assert boxes_of(work.run(train_path="voc"))["000000.jpg"] == []


def test_too_many_boxes_on_an_image(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_BOXES", 3)
    drawn = [*drawings(30), Drawn("full.jpg", (("cat", 1, 1, 9, 9),) * 4)]
    write_voc(work.data / "voc", drawn)
    assert work.run(train_path="voc")["unreadable"] == ["full.jpg (it has more than 3 boxes)"]


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_other_formats(work: Work, file_format: str) -> None:
    write_voc(work.data / "voc", [Drawn("a.jpg", (("cat", 1, 1, 9, 9),), (40, 30))])
    name = f"a.{file_format.lower()}"
    with Image.open(work.data / "voc" / "JPEGImages" / "a.jpg") as image:
        image.save(work.data / "voc" / "JPEGImages" / name)
    (work.data / "voc" / "JPEGImages" / "a.jpg").unlink()
    (record,) = records(work.run(train_path="voc"))
    assert (record["name"], record["width"], record["height"]) == (name, 40, 30)


# --- what the hash says, and what a kill leaves


def test_the_hash_is_of_images_boxes_and_splits(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawings(40)
    fields = {"train_path": "voc", "validation_percentage": 20}
    write_voc(work.data / "voc", drawn)
    first = work.run(**fields)["content_hash"]
    with monkeypatch.context() as patch:
        patch.setattr(cores, "PARALLEL_FROM", 0)
        assert work.run(**fields)["content_hash"] == first
    # Written in another order, to another place, some of it through links.
    for one in reversed(drawn):
        for name in (f"JPEGImages/{one.name}", f"Annotations/{Path(one.name).stem}.xml"):
            target = work.data / "copy" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if one.flagged:
                target.symlink_to(work.data / "voc" / name)
            else:
                target.write_bytes((work.data / "voc" / name).read_bytes())
    assert work.run(**fields | {"train_path": "copy"})["content_hash"] == first
    assert work.run(**fields, split_seed=5)["content_hash"] != first
    content = (work.data / "copy/JPEGImages/000000.jpg").read_bytes()
    (work.data / "copy/JPEGImages/000000.jpg").write_bytes(content + b"\0")
    assert work.run(**fields | {"train_path": "copy"})["content_hash"] != first
    (work.data / "copy/JPEGImages/000000.jpg").write_bytes(content)
    annotation = work.data / "copy/Annotations/000000.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>", "<xmin>0.5", 1))
    assert work.run(**fields | {"train_path": "copy"})["content_hash"] != first


def test_many_images_go_through_processes_in_order(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "PARALLEL_FROM", 10)
    monkeypatch.setattr(cores, "CHUNK", 4)
    drawn = drawings(200)
    write_voc(work.data / "voc", drawn)
    damage(work.data / "voc" / "JPEGImages" / "000150.jpg")
    seen: list[tuple[float, float]] = []
    description = import_dataset(work.spec(train_path="voc"), lambda done, total: seen.append((done, total)))
    assert [record["name"] for record in records(description)] == [
        one.name for one in drawn if one.name != "000150.jpg"
    ]
    assert seen == [(done, 200) for done in range(201)]


def test_a_task_that_ends_its_process_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "PARALLEL_FROM", 0)
    monkeypatch.setattr(cores, "CHUNK", 8)
    crash = "__import__('os').kill(__import__('os').getpid(), 11)"
    with cores.Cores() as pool:
        for count in (80, 5, 0):
            tasks = [crash if number in (3, 40, 41) else str(number) for number in range(count)]
            expected = [(task, -1 if task == crash else int(task)) for task in tasks]
            assert list(pool.map(eval, tasks, count, -1)) == expected


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_and_the_next_attempt_succeeds(work: Work) -> None:
    drawn = drawings(1200)
    write_voc(work.data / "voc", drawn)
    large = work.data / "large.jpg"
    write_picture(large, Drawn("large.jpg", (), (800, 600)))
    for one in drawn:
        image = work.data / "voc" / "JPEGImages" / one.name
        image.unlink()
        image.hardlink_to(large)
    spec = work.spec(train_path="voc", validation_percentage=10)
    reference = work.spec(train_path="voc", validation_percentage=10)
    spec_file = Path(spec.staging) / "spec.json"
    spec.write(spec_file)
    command = [sys.executable, "-m", "datasets_service.worker.import_dataset", str(spec_file)]
    process = subprocess.Popen(command, env={**os.environ, "DLMESH_JOB_DIR": str(work.home)})
    lines = Path(spec.staging) / "records" / "train" / "annotations.jsonl"
    until(lambda: lines.exists() and lines.stat().st_size > 0)
    workers = children(process.pid)
    assert len(workers) >= min(2, len(os.sched_getaffinity(0)))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: not any(is_running(worker) for worker in workers))
    assert not Path(spec.target).exists()
    assert subprocess.run(command, check=False).returncode == 0
    description = json.loads((Path(spec.target) / "dataset.json").read_text())
    assert {split: described["count"] for split, described in description["splits"].items()} == {
        "train": 1080,
        "val": 120,
    }
    assert description["content_hash"] == import_dataset(reference, lambda done, total: None)["content_hash"]
    # Another attempt finds it done.
    assert subprocess.run(command, check=False).returncode == 0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- slices


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("training", "train"),
        ("Train", "train"),
        ("VALIDATION", "val"),
        ("val", "val"),
        ("Val", "val"),
        ("Test", "test"),
    ],
)
def test_words_of_a_slice(text: str, split: str) -> None:
    assert SliceRequest.parse(text) == SliceRequest(split, 0, 100)
    assert SliceRequest.parse(text, 5, 10_000) == SliceRequest(split, 5, 10_000)


@pytest.mark.parametrize(
    ("text", "start", "length", "field"),
    [
        ("", None, None, "type"),
        ("all", None, None, "type"),
        ("train", -1, None, "start"),
        ("train", 0, 0, "length"),
        ("train", 0, 10_001, "length"),
    ],
)
def test_a_wrong_slice(text: str, start: int | None, length: int | None, field: str) -> None:
    with pytest.raises(ServiceError) as refused:
        SliceRequest.parse(text, start, length)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.metadata["field"] == field


def test_a_slice_reads_only_its_lines(work: Work) -> None:
    drawn = drawings(20)
    write_voc(work.data / "voc", drawn)
    folder = Path(work.run(train_path="voc")["splits"]["train"]["path"])
    assert (folder / "annotations.index").stat().st_size == 21 * struct.calcsize("<Q")
    lines = (folder / "annotations.jsonl").read_bytes().splitlines(keepends=True)
    # What is not asked for may be anything.
    (folder / "annotations.jsonl").write_bytes(
        b"".join(line if 5 <= number < 8 else b"?" * len(line) for number, line in enumerate(lines))
    )
    assert [image.name for image in read_object_images(folder, 5, 3)] == [one.name for one in drawn[5:8]]
    for start, length, count in ((20, 5, 0), (2_000_000_000, 10_000, 0)):
        assert len(list(read_object_images(folder, start, length))) == count


def test_a_slice_ends_with_the_split(work: Work) -> None:
    write_voc(work.data / "voc", drawings(20))
    folder = Path(work.run(train_path="voc")["splits"]["train"]["path"])
    assert len(list(read_object_images(folder, 15, 10))) == 5
    assert len(list(read_object_images(folder, 19, 1))) == 1
    assert len(list(read_object_images(folder, 0, 10_000))) == 20


# --- through the running service


@dataclass
class Room:
    """The running service and its played scheduler."""

    stub: Any
    settings: ServiceSettings
    jobs: FakeJobs

    async def create(self, **fields: Any) -> None:
        fields = {"train_path": "voc", **fields}
        await self.stub.CreateDataset(
            pb.CreateDatasetRequest(
                name="shapes",
                backend="objectdetection",
                source_type="ImageForObjectDetection",
                instance_group_id="local",
                **fields,
            )
        )

    async def detail(self) -> Any:
        return await self.stub.GetDataset(pb.GetDatasetRequest(name="shapes"))

    async def finish(self) -> Any:
        async with asyncio.timeout(60):
            while not self.jobs.requests:
                await asyncio.sleep(0.02)
            ((job_id, request),) = self.jobs.requests.items()
            process = await asyncio.create_subprocess_exec(sys.executable, *request.command[1:])
            assert await process.wait() == 0
            self.jobs.facts[job_id] = JobFacts(job_id, "FINISHED", started_at=utc_now(), ended_at=utc_now())
            while (detail := await self.detail()).status != "FINISHED":
                await asyncio.sleep(0.02)
        return detail

    async def images(self, **parameters: Any) -> list[Any]:
        call = self.stub.ListObjectImages(pb.ListObjectImagesRequest(name="shapes", **parameters))
        return await collect(call)

    async def refusal(self, **parameters: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.images(**parameters)
        return refused.value.code().name, refused.value.details() or ""


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    settings = settings_for("datasets", tmp_path)
    jobs = FakeJobs()
    async with running(build(settings, jobs=jobs, models=FakeModels()), settings) as client:
        with acting_as(ALICE):
            yield Room(client.stub(datasets_pb2_grpc.DatasetServiceStub), settings, jobs)


async def test_the_life_of_a_detection_dataset(room: Room) -> None:
    drawn = drawings(20)
    data = room.settings.home / "data"
    write_voc(data / "voc", drawn)
    assert await room.refusal(split="train") == ("NOT_FOUND", "dataset 'shapes' does not exist")
    await room.create(image_options=pb.ImageOptions(validation_percentage=20, color_mode="Color"))
    code, message = await room.refusal(split="train")
    assert code == "INVALID_ARGUMENT"
    assert "FINISHED; this one is SUBMITTED" in message

    detail = await room.finish()
    assert (detail.source_type, detail.backend) == ("IMAGEFOROBJECTDETECTION", "ObjectDetection")
    assert [pair[0] for pair in detail.train_labels] == list(CLASSES)
    counted = {pair[0]: int(pair[1]) for pair in detail.train_labels}
    counted = {pair[0]: counted[pair[0]] + int(pair[1]) for pair in detail.validation_labels}
    assert counted == {label: sum(box[0] == label for one in drawn for box in one.boxes) for label in CLASSES}
    assert detail.size_bytes == sum(file.stat().st_size for file in (data / "voc" / "JPEGImages").iterdir())
    assert len(detail.content_hash) == 64

    shown = {image.name: image for split in ("training", "VAL") for image in await room.images(split=split)}
    assert len(await room.images(split="validation")) == 4
    for one in drawn:
        image = shown[one.name]
        assert image.path == str(data / "voc" / "JPEGImages" / one.name)
        assert json.loads(image.labels) == [{"label": label, "bbox": box} for label, *box in one.boxes]
    train = await room.images(split="Train", length=10_000)
    assert len(train) == 16
    assert await room.images(split="train", start=3, length=5) == train[3:8]
    assert await room.images(split="train", start=14, length=5) == train[14:]
    assert await room.images(split="train", start=16) == []

    assert await room.refusal(split="test") == ("NOT_FOUND", "split 'shapes/test' does not exist")
    for parameters, named in (
        ({}, "type"),
        ({"split": "all"}, "type"),
        ({"split": "train", "start": -1}, "start"),
        ({"split": "train", "length": 0}, "length"),
        ({"split": "train", "length": 10_001}, "length"),
    ):
        code, message = await room.refusal(**parameters)
        assert (code, message.partition(":")[0]) == ("INVALID_ARGUMENT", named)

    await room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="shapes"))
    assert len(list((data / "voc").rglob("*.jpg"))) == 20


async def test_a_long_slice_comes_in_batches(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_service.detection.records.BATCH_IMAGES", 4)
    monkeypatch.setattr("datasets_service.detection.records.BATCH_BOXES", 5)
    drawn = drawings(30)
    write_coco(room.settings.home / "data" / "coco" / "labels.json", drawn)
    await room.create(train_path="coco")
    await room.finish()
    assert [image.name for image in await room.images(split="train")] == [one.name for one in drawn]


async def test_other_datasets_have_no_object_images(room: Room) -> None:
    (room.settings.home / "data" / "anything").mkdir(parents=True)
    for label in "ab":
        write_picture(room.settings.home / "data" / "digits" / label / "0.jpg", Drawn("0.jpg", ()))
    options = pb.ImageOptions(train_image_path="digits", width=8, height=8)
    await room.stub.CreateDataset(
        pb.CreateDatasetRequest(
            name="shapes",
            backend="LMDB",
            source_type="IMAGEFORCLASSIFICATION",
            instance_group_id="local",
            image_options=options,
        )
    )
    code, message = await room.refusal(split="train")
    assert code == "INVALID_ARGUMENT"
    assert "datasourcetype IMAGEFOROBJECTDETECTION, not IMAGEFORCLASSIFICATION" in message
