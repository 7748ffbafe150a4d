"""Imports of images, on real images and real record files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from dataset_fakes import write_images
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import ImageOptions, ImportOptions
from datasets_service.domain.words import Backend, ColorMode, SourceType
from datasets_service.images import image_import
from datasets_service.importers.base import ImportRefusedError
from datasets_service.sources import cores
from datasets_service.worker.import_dataset import import_dataset
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from recordkit.example import ImageExample
from recordkit.tfrecord import TFRecordFile, index_file


def make_spec(tmp_path: Path, **changes: Any) -> ImportSpec:
    """An import of tmp_path/images; `changes` are of the spec, its options or its image options, by their names."""
    images = ImageOptions(
        train_path=str(tmp_path / "images"),
        color_mode=ColorMode.GRAY,
        width=8,
        height=8,
        validation_percentage=10,
        test_percentage=20,
    )
    of_images = {key: changes.pop(key) for key in list(changes) if key in asdict(images)}
    of_options = {key: changes.pop(key) for key in list(changes) if key in asdict(ImportOptions())}
    spec = ImportSpec(
        uid="d" * 32,
        name="digits",
        source_type=SourceType.IMAGES_FOR_CLASSIFICATION,
        backend=Backend.LMDB,
        options=ImportOptions(images=replace(images, **of_images), **of_options),
        data_roots=(str(tmp_path),),
        staging=str(tmp_path / "home" / "importing" / "d"),
        target=str(tmp_path / "home" / "d"),
    )
    spec = replace(spec, **changes)
    Path(spec.staging).mkdir(parents=True, exist_ok=True)
    return spec


def run(spec: ImportSpec) -> dict[str, Any]:
    return import_dataset(spec, lambda done, total: None)


def elsewhere(tmp_path: Path, spec: ImportSpec, name: str = "e", home: str = "") -> ImportSpec:
    """The same import with another staging and target; in a home of its own, where nothing was imported before."""
    staging = tmp_path / (home or f"home-{name}") / "importing" / name
    staging.mkdir(parents=True)
    return replace(spec, uid=name, staging=str(staging), target=str(staging.parents[1] / name))


def read_records(folder: str) -> list[tuple[bytes, bytes]]:
    with lmdb.open(folder, readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


def message_class(name: str, fields: list[tuple[int, str, str]], floats: int) -> Any:
    """One of Caffe's messages, from its published definition."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name=name)
    for number, field, kind in fields:
        message.field.add(name=field, number=number, type=getattr(kinds, f"TYPE_{kind}"), label=kinds.LABEL_OPTIONAL)
    field = "float_data" if name == "Datum" else "data"
    message.field.add(name=field, number=floats, type=kinds.TYPE_FLOAT, label=kinds.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))


@pytest.fixture(scope="module")
def datum_class() -> Any:
    fields = [(1, "channels", "INT32"), (2, "height", "INT32"), (3, "width", "INT32"), (4, "data", "BYTES")]
    return message_class("Datum", [*fields, (5, "label", "INT32"), (7, "encoded", "BOOL")], 6)


def labels_of(description: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: split["labels"] for name, split in description["splits"].items()}


def names_in(description: dict[str, Any], split: str) -> set[str]:
    return {key.decode().split("_", 1)[1] for key, _ in read_records(description["splits"][split]["path"])}


def test_an_import_publishes_records_labels_mean_and_description(tmp_path: Path, datum_class: Any) -> None:
    write_images(tmp_path / "images", {"b": 20, "a": 10})
    seen: list[tuple[float, float]] = []
    spec = make_spec(tmp_path)
    description = import_dataset(spec, lambda done, total: seen.append((done, total)))
    target = Path(spec.target)
    assert json.loads((target / "dataset.json").read_text()) == description
    assert (target / "labels.txt").read_text() == "a\nb\n"
    assert seen[0] == (0, 30)
    assert seen[-1] == (30, 30)
    assert labels_of(description) == {"train": {"a": 7, "b": 14}, "val": {"a": 1, "b": 2}, "test": {"a": 2, "b": 4}}
    total, names = np.zeros((1, 8, 8)), set()
    for split in description["splits"].values():
        for index, (key, record) in enumerate(read_records(split["path"])):
            number, name = key.decode().split("_", 1)
            assert int(number) == index
            datum = datum_class.FromString(record)
            label, file = name.split("/")
            assert "ab"[datum.label] == label
            truth = np.asarray(Image.open(tmp_path / "images" / label / file))
            assert datum.data == truth.tobytes()
            names.add(name)
            if split["path"].endswith("train"):
                total += truth
    assert len(names) == 30
    np.testing.assert_allclose(np.load(description["mean_file"]), total / 21, rtol=1e-5)
    sizes = sum(file.stat().st_size for file in target.rglob("*") if file.is_file() and file.name != "dataset.json")
    assert description["size_bytes"] == sizes


def test_color_records_are_bgr(tmp_path: Path, datum_class: Any) -> None:
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "images" / label / "x.png")
    spec = make_spec(tmp_path, color_mode=ColorMode.COLOR, validation_percentage=0, test_percentage=0)
    description = run(spec)
    datum = datum_class.FromString(read_records(description["splits"]["train"]["path"])[0][1])
    assert datum.data == bytes([30] * 64 + [20] * 64 + [10] * 64)
    assert np.load(description["mean_file"])[:, 0, 0].tolist() == [30, 20, 10]
    assert list(description["splits"]) == ["train"]


def test_tfrecords_hold_the_same_images_in_the_shards_that_were_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"b": 20, "a": 10})
    description = run(make_spec(tmp_path, backend=Backend.TFRECORDS, shards=4))
    assert labels_of(description)["train"] == {"a": 7, "b": 14}
    for split, count in (("train", 21), ("val", 3), ("test", 6)):
        folder = Path(description["splits"][split]["path"])
        files = sorted(folder.iterdir())
        shards = min(4, count)
        assert [file.name for file in files] == [f"{split}-{n:05d}-of-{shards:05d}.tfrecord" for n in range(shards)]
        assert sum(len(TFRecordFile(file)) for file in files) == count
        for file in files:
            records = TFRecordFile(file)
            places = [f"{offset} {len(record) + 16}" for offset, record in zip(records.offsets, records, strict=True)]
            assert index_file(file).read_text().splitlines() == places
            for example in map(ImageExample.parse, records):
                truth = np.asarray(Image.open(tmp_path / "images" / example.filename))
                # What came without loss is kept without loss.
                assert example.format == "png"
                assert np.array_equal(np.asarray(example.image()), truth)
                assert (example.text, example.label) == (example.filename[0], "ab".index(example.filename[0]))
                assert (example.height, example.width, example.channels) == (8, 8, 1)


def test_tfrecords_by_class_hold_one_class_a_file(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a b": 6, "c/../d"[:1]: 4})
    spec = make_spec(
        tmp_path, backend=Backend.TFRECORDS, shards=2, by_class=True, validation_percentage=0, test_percentage=0
    )
    folder = Path(run(spec)["splits"]["train"]["path"])
    texts = {file.name: {ImageExample.parse(record).text for record in TFRecordFile(file)} for file in folder.iterdir()}
    assert texts == {
        "train-00000-a_b-00000-of-00002.tfrecord": {"a b"},
        "train-00000-a_b-00001-of-00002.tfrecord": {"a b"},
        "train-00001-c-00000-of-00002.tfrecord": {"c"},
        "train-00001-c-00001-of-00002.tfrecord": {"c"},
    }


@pytest.mark.parametrize("backend", [Backend.LMDB, Backend.TFRECORDS])
def test_the_same_images_and_options_have_the_same_hash(tmp_path: Path, backend: Backend) -> None:
    write_images(tmp_path / "images", {"a": 12, "b": 12})
    spec = make_spec(tmp_path, backend=backend, split_seed=3)
    first = run(spec)["content_hash"]
    assert run(elsewhere(tmp_path, replace(spec, name="other")))["content_hash"] == first
    other = make_spec(tmp_path, backend=backend, split_seed=4)
    assert run(elsewhere(tmp_path, other, "f"))["content_hash"] != first


@pytest.mark.parametrize("backend", [Backend.LMDB, Backend.TFRECORDS])
def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 30})
    monkeypatch.setattr(image_import, "PART_IMAGES", 7)
    spec = make_spec(tmp_path, backend=backend, shards=2)
    alone = run(spec)
    monkeypatch.setattr(cores, "PARALLEL_FROM", 10)
    together = run(elsewhere(tmp_path, spec))
    assert together["content_hash"] == alone["content_hash"]
    for one in Path(alone["splits"]["train"]["path"]).iterdir():
        assert one.read_bytes() == (tmp_path / "home-e" / "e" / "train" / one.name).read_bytes()


CRASHING = """
import os, sys
from pathlib import Path
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.images import image_import, parts
from datasets_service.sources import cores
from datasets_service.worker.import_dataset import import_dataset

image_import.PART_IMAGES = 7
cores.PARALLEL_FROM = 10
read = parts._read

def crash(file, image, roots):
    if file.endswith(("a/0003.png", "b/0011.png")):
        os.abort()
    return read(file, image, roots)

# Processes that are spawned run this again.
parts._read = crash
if __name__ == "__main__":
    import_dataset(ImportSpec.read(Path(sys.argv[1])), lambda done, total: None)
"""


@pytest.mark.slow
def test_images_that_crash_the_decoder_are_left_out_and_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 30})
    spec = make_spec(tmp_path)
    spec.write(tmp_path / "spec.json")
    (tmp_path / "program.py").write_text(CRASHING)
    subprocess.check_call([sys.executable, tmp_path / "program.py", tmp_path / "spec.json"])
    description = json.loads((Path(spec.target) / "dataset.json").read_text())
    assert sorted(description["unreadable"]) == [
        "a/0003.png (the decoder crashed)",
        "b/0011.png (the decoder crashed)",
    ]
    assert sum(split["count"] for split in description["splits"].values()) == 58


def test_the_split_is_stratified_and_leaves_training_something(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 100, "b": 50, "c": 1})
    assert labels_of(run(make_spec(tmp_path))) == {
        "train": {"a": 70, "b": 35, "c": 1},
        "val": {"a": 10, "b": 5, "c": 0},
        "test": {"a": 20, "b": 10, "c": 0},
    }


def test_small_classes_together_make_up_a_split(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {f"{label}": 4 for label in range(10)})
    counts = labels_of(run(make_spec(tmp_path, test_percentage=0)))["val"].values()
    assert (sum(counts), max(counts)) == (4, 1)


def test_a_random_split_takes_its_percentage_of_all(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 60, "b": 40})
    splits = run(make_spec(tmp_path, split_algorithm="random"))["splits"]
    assert {name: split["count"] for name, split in splits.items()} == {"train": 70, "val": 10, "test": 20}


def test_the_folds_of_k_fold_cover_everything_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 20, "b": 10, **{f"c{n}": 4 for n in range(5)}})
    spec = make_spec(tmp_path, validation_percentage=0)
    folds, tests = [], set()
    for fold in (1, 2, 3, 4):
        images = replace(spec.options.images, split_algorithm=f"k-fold {fold}/4")
        description = run(
            elsewhere(tmp_path, replace(spec, options=replace(spec.options, images=images)), f"fold{fold}")
        )
        folds.append(names_in(description, "val"))
        tests.add(frozenset(names_in(description, "test")))
        assert not folds[-1] & names_in(description, "train")
    assert len(tests) == 1
    assert sum(map(len, folds)) == len(set().union(*folds)) == 50 - 10
    assert max(map(len, folds)) - min(map(len, folds)) <= 2


def test_by_name_reads_the_split_from_file_names(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_images(tmp_path / "images", {label: 5})
        for number, word in enumerate(("val", "Test", "validation")):
            (tmp_path / "images" / label / f"{number:04d}.png").rename(
                tmp_path / "images" / label / f"{word}_{number}.png"
            )
    spec = make_spec(tmp_path, split_algorithm="by-name", validation_percentage=0, test_percentage=0)
    assert labels_of(run(spec)) == {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}


def test_by_name_reads_the_split_from_folders_above_the_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "training", {"a": 4, "b": 3})
    write_images(tmp_path / "images" / "val", {"a": 1}, first=10)
    write_images(tmp_path / "images" / "test", {"b": 2}, first=20)
    spec = make_spec(tmp_path, split_algorithm="by-name", validation_percentage=0, test_percentage=0)
    description = run(spec)
    assert labels_of(description) == {"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 0}, "test": {"a": 0, "b": 2}}
    assert names_in(description, "val") == {"val/a/0010.png"}


def test_own_validation_and_test_folders_are_used(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    write_images(tmp_path / "val", {"a": 3}, first=100)
    write_images(tmp_path / "test", {"a": 1, "b": 2}, first=200)
    spec = make_spec(
        tmp_path,
        validation_path=str(tmp_path / "val"),
        test_path=str(tmp_path / "test"),
        validation_percentage=0,
        test_percentage=0,
    )
    # These are fields of the options as well: what is meant here are folders of images.
    images = replace(spec.options.images, validation_path=str(tmp_path / "val"), test_path=str(tmp_path / "test"))
    spec = replace(spec, options=ImportOptions(images=images))
    assert labels_of(run(spec)) == {
        "train": {"a": 10, "b": 10},
        "val": {"a": 3, "b": 0},
        "test": {"a": 1, "b": 2},
    }


def write_list(tmp_path: Path, name: str, lines: list[str]) -> str:
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(tmp_path / name)


def list_spec(tmp_path: Path, lines: list[str], labels: list[str] | None = None, **changes: Any) -> ImportSpec:
    write_images(tmp_path / "images", {"x": 10, "y": 10})
    lists = {"train_list": write_list(tmp_path, "train.txt", lines)}
    if labels is not None:
        lists["label_list"] = write_list(tmp_path, "labels.txt", labels)
    return make_spec(
        tmp_path, **{"validation_percentage": 0, "test_percentage": 0, "uses_text_lists": True, **lists, **changes}
    )


LINES = [*(f"x/{n:04d}.png 0" for n in range(10)), *(f"y/{n:04d}.png 1" for n in range(10))]


@pytest.mark.parametrize(
    ("lines", "labels", "expected"),
    [
        (LINES, ["cat", "dog"], {"cat": 10, "dog": 10}),
        (LINES, None, {"0": 10, "1": 10}),
        ([line.replace(" 0", "\tbig cat").replace(" 1", "\tdog") for line in LINES], None, {"big cat": 10, "dog": 10}),
        ([line.replace(" 0", " dog").replace(" 1", " cat") for line in LINES], ["cat", "dog"], {"cat": 10, "dog": 10}),
    ],
)
def test_text_lists(tmp_path: Path, lines: list[str], labels: list[str] | None, expected: dict[str, int]) -> None:
    assert labels_of(run(list_spec(tmp_path, lines, labels)))["train"] == expected


def test_lists_of_their_own_for_validation_and_test(tmp_path: Path) -> None:
    spec = list_spec(
        tmp_path,
        LINES[:8] + LINES[10:18],
        ["cat", "dog"],
        validation_list=write_list(tmp_path, "val.txt", LINES[8:9]),
        test_list=write_list(tmp_path, "test.txt", LINES[18:]),
    )
    assert labels_of(run(spec)) == {
        "train": {"cat": 8, "dog": 8},
        "val": {"cat": 1, "dog": 0},
        "test": {"cat": 0, "dog": 2},
    }


@pytest.mark.parametrize(
    ("lines", "labels", "message"),
    [
        ([*LINES, "x/0000.png"], None, "train.txt, line 21: 'x/0000.png' has no label"),
        ([*LINES, "x/0000.png 2"], ["cat", "dog"], "train.txt, line 21: label '2' is none of cat, dog"),
        ([*LINES, "../secret.png 0"], ["cat", "dog"], "line 21: '../secret.png' lies outside the data roots"),
        ([*LINES, "/etc/passwd 0"], ["cat", "dog"], "line 21: '/etc/passwd' lies outside the data roots"),
        ([*LINES, "x 0"], ["cat", "dog"], "line 21: 'x' is not a file"),
        (LINES[:10], ["cat", "dog"], "training has no image of these labels: dog"),
        (LINES, ["cat", "dog", "cow"], "training has no image of these labels: cow"),
        (LINES, ["cat", "cat"], "labels.txt, line 2: label 'cat' is there twice"),
        (LINES, ["cat"], "labels.txt has 1 labels"),
        ([], None, "0 labels"),
        ([*LINES, *(f"gone{n}.png 0" for n in range(2))], None, "more than 5% of 22 images could not be read"),
        ([*LINES, "a\0b 0"], None, "line 21: not text"),
    ],
)
def test_wrong_lists_are_refused_with_file_and_line(
    tmp_path: Path, lines: list[str], labels: list[str] | None, message: str
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    spec = replace(list_spec(tmp_path, lines, labels), data_roots=(str(tmp_path / "images"),))
    with pytest.raises(ImportRefusedError) as caught:
        run(spec)
    assert message in str(caught.value)
    assert not Path(spec.target).exists()


def test_vectors_are_kept_with_their_images(tmp_path: Path, datum_class: Any) -> None:
    write_images(tmp_path / "images", {"x": 10})
    truth = {f"x/{n:04d}.png": [n / 4, -1.5, 1e-3] for n in range(10)}
    lines = [f"{name} {' '.join(map(str, vector))}" for name, vector in truth.items()]
    spec = make_spec(
        tmp_path,
        source_type=SourceType.IMAGES_TO_VECTOR,
        backend=Backend.IMAGE_VECTOR,
        uses_text_lists=True,
        train_list=write_list(tmp_path, "train.txt", lines),
    )
    description = run(spec)
    assert {split: content["count"] for split, content in description["splits"].items()} == {
        "train": 7,
        "val": 1,
        "test": 2,
    }
    for split in description["splits"].values():
        for key, record in read_records(split["path"]):
            name, datum = key.decode().split("_", 1)[1], datum_class.FromString(record)
            np.testing.assert_allclose(list(datum.float_data), truth.pop(name), rtol=1e-6)
            assert datum.data == np.asarray(Image.open(tmp_path / "images" / name)).tobytes()
    assert not truth


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x/0000.png", "line 2: 'x/0000.png' has no vector"),
        ("x/0000.png one", "line 2: could not convert"),
        ("x/0000.png nan 1", "line 2: 'x/0000.png nan 1' has no vector of finite numbers"),
        ("x/0000.png 1 2 3", "line 2: 3 values, the lines before have 2"),
    ],
)
def test_wrong_vectors_are_refused_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    write_images(tmp_path / "images", {"x": 2})
    spec = make_spec(
        tmp_path,
        source_type=SourceType.IMAGES_TO_VECTOR,
        backend=Backend.IMAGE_VECTOR,
        uses_text_lists=True,
        train_list=write_list(tmp_path, "train.txt", ["x/0001.png 1 2", line]),
    )
    with pytest.raises(ImportRefusedError, match=message):
        run(spec)


def test_the_mean_is_there_for_caffe_too(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 5, "b": 5})
    description = run(make_spec(tmp_path))
    blob = message_class(
        "BlobProto", [(1, "num", "INT32"), (2, "channels", "INT32"), (3, "height", "INT32"), (4, "width", "INT32")], 5
    ).FromString(Path(description["mean_file"]).with_suffix(".binaryproto").read_bytes())
    mean = np.array(blob.data, np.float32).reshape(blob.num, blob.channels, blob.height, blob.width)
    assert np.array_equal(mean[0], np.load(description["mean_file"]))


@pytest.mark.parametrize("given", [np.full((1, 8, 8), 7.5, np.float32), np.array([7.5], np.float64)])
def test_a_mean_that_is_given_is_taken(tmp_path: Path, given: np.ndarray) -> None:
    write_images(tmp_path / "images", {"a": 5, "b": 5})
    np.save(tmp_path / "mine.npy", given)
    description = run(make_spec(tmp_path, mean_file=str(tmp_path / "mine.npy")))
    assert np.array_equal(np.load(description["mean_file"]), np.full((1, 8, 8), 7.5, np.float32))


@pytest.mark.parametrize("name", ["mine.npy", "mine.binaryproto"])
def test_a_mean_of_another_size_is_refused(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "images", {"a": 5, "b": 5})
    np.save(tmp_path / "mine.npy", np.zeros((3, 9, 9)))
    (tmp_path / "mine.binaryproto").write_bytes(b"\x08\x01no blob")
    with pytest.raises(ImportRefusedError, match=r"meanfilepath: .* is no mean of 1 x 8 x 8"):
        run(make_spec(tmp_path, mean_file=str(tmp_path / name)))


def test_a_few_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 30})
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    description = run(make_spec(tmp_path))
    assert description["unreadable_count"] == 1
    assert description["unreadable"][0].startswith("a/broken.png (UnidentifiedImageError")
    assert sum(split["count"] for split in description["splits"].values()) == 60


def test_many_unreadable_images_refuse_the_import(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    for index in range(3):
        (tmp_path / "images" / "a" / f"broken{index}.png").write_bytes(b"no image")
    spec = make_spec(tmp_path)
    with pytest.raises(ImportRefusedError, match=r"more than 5% of 23 images could not be read: a/broken\d.png"):
        run(spec)
    assert not Path(spec.target).exists()


def test_a_label_without_a_readable_image_refuses_the_import(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 1})
    (tmp_path / "images" / "b" / "0000.png").write_bytes(b"no image")
    with pytest.raises(ImportRefusedError, match="no training image of these labels could be read: b"):
        run(make_spec(tmp_path))


def test_unusual_names_work(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"spaced out": 2, "\u732b": 2})
    odd = os.fsencode(tmp_path / "images" / "spaced out") + b"/caf\xe9 \n'\".png"
    (tmp_path / "images" / "spaced out" / "0000.png").rename(os.fsdecode(odd))
    description = run(make_spec(tmp_path, validation_percentage=0, test_percentage=0))
    assert description["labels"] == ["spaced out", "\u732b"]
    keys = [key for key, _ in read_records(description["splits"]["train"]["path"])]
    assert sum(key.endswith(b"caf\xe9 \n'\".png") for key in keys) == 1


def test_links_may_not_lead_out_of_the_data_roots(tmp_path: Path) -> None:
    root = write_images(tmp_path / "roots" / "images", {"a": 2, "b": 2})
    secret = write_images(tmp_path / "elsewhere", {"x": 1}) / "x" / "0000.png"
    (root / "a" / "stolen.png").symlink_to(secret)
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "itself.png").symlink_to("itself.png")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "inside.png").symlink_to(root / "a" / "0000.png")
    (root / "stolen").symlink_to(secret.parent)
    spec = make_spec(
        tmp_path,
        data_roots=(str(tmp_path / "roots"),),
        validation_percentage=0,
        test_percentage=0,
    )
    spec = replace(spec, options=ImportOptions(images=replace(spec.options.images, train_path=str(root))))
    description = run(spec)
    assert description["labels"] == ["a", "b"]
    assert names_in(description, "train") == {"a/0000.png", "a/0001.png", "b/0000.png", "b/0001.png", "b/inside.png"}


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.images import image_import, manifest, writers
from datasets_service.worker import import_dataset as worker

image_import.PART_IMAGES = 5
image_import.CHECKPOINT_SECONDS = 0
point = sys.argv[2]

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total):
    if point == "records" and done >= total // 2:
        die()

save = manifest.Manifest.save
def save_and_die(self, state, pixel_sum):
    if point == "commit" and state.position >= 20:
        die()
    save(self, state, pixel_sum)

manifest.Manifest.save = save_and_die
if point == "plan":
    manifest.Manifest._hold_out = die
if point == "publish":
    worker._publish = die
if point == "report":
    publish = worker._publish
    worker._publish = lambda *arguments: (publish(*arguments), die())
worker.import_dataset(ImportSpec.read(Path(sys.argv[1])), progress)
"""


@pytest.mark.parametrize("backend", [Backend.LMDB, Backend.TFRECORDS])
@pytest.mark.parametrize("point", ["plan", "records", "commit", "publish", "report"])
def test_a_kill_never_leaves_what_looks_finished_and_the_next_attempt_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, backend: Backend
) -> None:
    write_images(tmp_path / "images", {"a": 20, "b": 20})
    spec = make_spec(tmp_path, backend=backend, shards=3)
    spec.write(tmp_path / "spec.json")
    code = subprocess.call([sys.executable, "-c", KILLED_AT, tmp_path / "spec.json", point])
    assert code == -signal.SIGKILL
    assert Path(spec.target).exists() is (point == "report")
    monkeypatch.setattr(image_import, "PART_IMAGES", 5)
    seen: list[float] = []
    description = import_dataset(spec, lambda done, total: seen.append(done))
    went_on = {"plan": [0], "records": range(15, 26), "commit": range(10, 20), "publish": [40], "report": []}[point]
    assert not seen if point == "report" else seen[0] in went_on
    untouched = run(elsewhere(tmp_path, spec))
    assert description["content_hash"] == untouched["content_hash"]
    assert labels_of(description) == labels_of(untouched)
    assert np.array_equal(np.load(description["mean_file"]), np.load(untouched["mean_file"]))
    for split in description["splits"]:
        folder, other = (Path(one["splits"][split]["path"]) for one in (description, untouched))
        if backend is Backend.LMDB:
            assert read_records(str(folder)) == read_records(str(other))
        else:
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
                file.name: file.read_bytes() for file in other.iterdir()
            }


def test_a_rerun_imports_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", {"b": 20, "c": 20})
    spec = make_spec(tmp_path)
    run(spec)
    decoded: list[str] = []
    monkeypatch.setattr(
        "datasets_service.images.parts._read",
        lambda file, image, roots: decoded.append(image.path) or Path(file).read_bytes(),
    )
    # A label that comes first moves the numbers of the others; what changed is looked at again.
    write_images(tmp_path / "images", {"a": 3})
    write_images(tmp_path / "images", {"c": 1}, first=50)
    os.utime(tmp_path / "images" / "b" / "0007.png", (1, 1))
    description = run(elsewhere(tmp_path, spec, "more", "home"))
    assert sorted(decoded) == ["a/0000.png", "a/0001.png", "a/0002.png", "b/0007.png", "c/0050.png"]
    fresh = run(elsewhere(tmp_path, spec, "fresh"))
    assert len(decoded) == 5 + 44
    assert fresh["content_hash"] == description["content_hash"]
    assert np.array_equal(np.load(fresh["mean_file"]), np.load(description["mean_file"]))
    for split in ("train", "val", "test"):
        assert read_records(fresh["splits"][split]["path"]) == read_records(description["splits"][split]["path"])


def test_records_made_in_another_way_are_not_taken_over(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"b": 20, "c": 20}, size=(16, 16))
    run(make_spec(tmp_path))
    other = run(elsewhere(tmp_path, make_spec(tmp_path, width=16, height=16), "e", "home"))
    assert other["image"] == {"width": 16, "height": 16, "channels": 1}
    assert len({path.read_text() for path in (tmp_path / "home" / "known").iterdir()}) == 2


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", {"a": 20, "b": 20})
    monkeypatch.setattr(image_import, "PART_IMAGES", 5)

    def progress(done: float, total: float) -> None:
        if done == 0:
            for file in (tmp_path / "images").rglob("*.png"):
                os.utime(file, (1, 1))

    with pytest.raises(ImportRefusedError, match=r"\d.png changed while it was imported"):
        import_dataset(make_spec(tmp_path), progress)


def run_worker(tmp_path: Path, spec: ImportSpec) -> tuple[int, dict[str, Any]]:
    spec.write(tmp_path / "spec.json")
    (tmp_path / "job").mkdir()
    environment = {
        **os.environ,
        "DLMESH_JOB_ID": "j",
        "DLMESH_JOB_DIR": str(tmp_path / "job"),
        "DLMESH_JOB_ATTEMPT": "1",
    }
    command = [sys.executable, "-m", "datasets_service.worker.import_dataset", tmp_path / "spec.json"]
    code = subprocess.call(command, env=environment)
    return code, json.loads((tmp_path / "job" / "report.json").read_text())


def test_the_worker_reports_progress_and_result(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    code, report = run_worker(tmp_path, make_spec(tmp_path))
    assert code == 0
    assert report["progress"] == {"done": 20, "total": 20, "phase": "import"}
    assert len(report["result"]["content_hash"]) == 64


def test_the_worker_reports_why_it_refuses(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10})
    code, report = run_worker(tmp_path, make_spec(tmp_path))
    # The queue does not try again.
    assert code == os.EX_DATAERR
    assert "1 labels" in report["result"]["refused"]


def test_the_worker_starts_without_torch_grpc_and_pandas() -> None:
    code = (
        "import sys, datasets_service.worker.import_dataset, datasets_service.importers.classification;"
        "print(*{'torch', 'grpc', 'sqlalchemy', 'pandas', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
