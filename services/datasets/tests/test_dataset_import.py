"""The import worker on real images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from dataset_fakes import write_images
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.words import ColorMode, ResizeMode
from datasets_service.worker import import_images as worker
from datasets_service.worker import pixels
from datasets_service.worker.datum import encode_datum
from datasets_service.worker.import_images import ImportRefusedError, import_images, make_plan
from datasets_service.worker.pixels import PixelOptions, UnreadableImageError, read_pixels, resize
from datasets_service.worker.splitting import hold_out
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image


def make_spec(tmp_path: Path, **changes: Any) -> ImportSpec:
    spec = ImportSpec(
        uid="d" * 32,
        name="digits",
        sources={"train": str(tmp_path / "images")},
        data_roots=(str(tmp_path),),
        color_mode=ColorMode.GRAY,
        width=8,
        height=8,
        resize_mode=ResizeMode.SQUASH,
        validation_percentage=10,
        test_percentage=20,
        staging=str(tmp_path / "home" / "importing" / "d"),
        target=str(tmp_path / "home" / "d"),
    )
    return replace(spec, **changes)


def silent(done: int, total: int) -> None:
    """Nobody watches."""


def read_records(folder: str) -> list[tuple[bytes, bytes]]:
    with lmdb.open(folder, readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


@pytest.fixture(scope="module")
def datum_class() -> Any:
    """Caffe's message, from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, name, kind in (
        (1, "channels", kinds.TYPE_INT32),
        (2, "height", kinds.TYPE_INT32),
        (3, "width", kinds.TYPE_INT32),
        (4, "data", kinds.TYPE_BYTES),
        (5, "label", kinds.TYPE_INT32),
        (7, "encoded", kinds.TYPE_BOOL),
    ):
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


@pytest.mark.parametrize(
    ("shape", "label"), [((1, 2, 3), 0), ((3, 300, 200), 70000), ((1, 1, 1), 127), ((1, 128, 1), 128)]
)
def test_a_datum_reads_as_protobuf_wrote_it(datum_class: Any, shape: tuple[int, int, int], label: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    datum = datum_class.FromString(encode_datum(values, label))
    assert (datum.channels, datum.height, datum.width, datum.label, datum.encoded) == (*shape, label, False)
    assert datum.data == values.tobytes()


def test_an_import_publishes_records_labels_mean_and_description(tmp_path: Path, datum_class: Any) -> None:
    write_images(tmp_path / "images", {"b": 20, "a": 10})
    seen: list[tuple[int, int]] = []
    spec = make_spec(tmp_path)
    description = import_images(spec, 1, lambda done, total: seen.append((done, total)))
    target = Path(spec.target)
    assert json.loads((target / "dataset.json").read_text()) == description
    assert (target / "labels.txt").read_text() == "a\nb\n"
    assert seen[0] == (0, 30)
    assert seen[-1] == (30, 30)
    assert not list(Path(spec.staging).iterdir())
    assert {name: split["labels"] for name, split in description["splits"].items()} == {
        "train": {"a": 7, "b": 14},
        "val": {"a": 1, "b": 2},
        "test": {"a": 2, "b": 4},
    }
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
    description = import_images(spec, 1, silent)
    datum = datum_class.FromString(read_records(description["splits"]["train"]["path"])[0][1])
    assert datum.data == bytes([30] * 64 + [20] * 64 + [10] * 64)
    assert list(description["splits"]) == ["train"]


def test_the_same_images_and_options_have_the_same_hash(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 12, "b": 12})
    first = import_images(make_spec(tmp_path), 1, silent)
    again = import_images(
        make_spec(tmp_path, uid="e", name="other", target=str(tmp_path / "home" / "e"), staging=str(tmp_path / "s")),
        1,
        silent,
    )
    assert again["content_hash"] == first["content_hash"]
    other = make_spec(tmp_path, target=str(tmp_path / "home" / "f"), staging=str(tmp_path / "s"), seed=1)
    assert import_images(other, 1, silent)["content_hash"] != first["content_hash"]


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 30})
    alone = import_images(make_spec(tmp_path), 1, silent)
    monkeypatch.setattr(worker, "PARALLEL_FROM_IMAGES", 10)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(worker, "BLOCK_IMAGES", 7)
    together = import_images(make_spec(tmp_path, target=str(tmp_path / "home" / "e")), 1, silent)
    assert together["content_hash"] == alone["content_hash"]


def test_the_split_is_stratified_reproducible_and_leaves_training_something() -> None:
    images = {"a": [f"{n}" for n in range(100)], "b": [f"{n}" for n in range(50)], "c": ["only"]}
    parts = hold_out(images, {"val": 10, "test": 20}, seed=0)
    counts = {split: {label: len(paths) for label, paths in classes.items()} for split, classes in parts.items()}
    assert counts == {
        "train": {"a": 70, "b": 35, "c": 1},
        "val": {"a": 10, "b": 5, "c": 0},
        "test": {"a": 20, "b": 10, "c": 0},
    }
    for label, paths in images.items():
        assert sorted(paths) == sorted(path for classes in parts.values() for path in classes[label])
    turned = {label: paths[::-1] for label, paths in images.items()}
    assert hold_out(turned, {"val": 10, "test": 20}, seed=0) == parts
    assert hold_out(images, {"val": 10, "test": 20}, seed=1) != parts


def test_small_classes_together_make_up_a_split() -> None:
    images = {f"{label}": [f"{n}" for n in range(4)] for label in range(10)}
    parts = hold_out(images, {"val": 10}, seed=0)
    assert sum(map(len, parts["val"].values())) == 4
    assert max(map(len, parts["val"].values())) == 1


def test_own_validation_and_test_folders_are_used(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    write_images(tmp_path / "val", {"a": 3}, first=100)
    write_images(tmp_path / "test", {"a": 1, "b": 2}, first=200)
    sources = {"train": str(tmp_path / "images"), "val": str(tmp_path / "val"), "test": str(tmp_path / "test")}
    spec = make_spec(tmp_path, sources=sources, validation_percentage=0, test_percentage=0)
    splits = import_images(spec, 1, silent)["splits"]
    assert {name: split["labels"] for name, split in splits.items()} == {
        "train": {"a": 10, "b": 10},
        "val": {"a": 3, "b": 0},
        "test": {"a": 1, "b": 2},
    }
    write_images(tmp_path / "test", {"z": 1})
    with pytest.raises(ImportRefusedError, match="classes that training has not: z"):
        make_plan(spec)


WIDE = np.array([[10, 20, 30, 40, 50, 60, 70, 80], [15, 25, 35, 45, 55, 65, 75, 85]], np.uint8)


@pytest.mark.parametrize(
    ("mode", "frame", "expected"),
    [
        # An image that is as large as the frame in one axis is not scaled, so that pixels can be told exactly.
        (ResizeMode.CROP, (2, 2), [[40, 50], [45, 55]]),
        (ResizeMode.FILL, (8, 4), [[0] * 8, WIDE[0], WIDE[1], [0] * 8]),
        (ResizeMode.SQUASH, (8, 2), WIDE),
        # Scales 0.5 and 1.5: between them is 1.
        (ResizeMode.HALF_CROP_HALF_FILL, (4, 3), [[30, 40, 50, 60], [35, 45, 55, 65], [0] * 4]),
    ],
)
def test_resize_modes_to_the_pixel(mode: ResizeMode, frame: tuple[int, int], expected: Any) -> None:
    options = PixelOptions(ColorMode.GRAY, *frame, mode)
    assert np.array_equal(np.asarray(resize(Image.fromarray(WIDE), options)), np.array(expected, np.uint8))


def test_squash_scales_both_axes() -> None:
    squashed = resize(Image.fromarray(WIDE), PixelOptions(ColorMode.GRAY, 2, 2, ResizeMode.SQUASH))
    expected = Image.fromarray(WIDE).resize((2, 2), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(squashed), np.asarray(expected))


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (7, 5), (1, 1)])
def test_every_shape_becomes_the_frame(mode: ResizeMode, size: tuple[int, int]) -> None:
    assert resize(Image.new("RGB", size), PixelOptions(ColorMode.COLOR, 16, 9, mode)).size == (16, 9)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_kind_of_image_is_read(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 4)).save(file)
    for color, channels in ((ColorMode.GRAY, 1), (ColorMode.COLOR, 3)):
        assert read_pixels(str(file), PixelOptions(color, 3, 2, ResizeMode.SQUASH)).shape == (channels, 2, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "x.png")
    values = read_pixels(str(tmp_path / "x.png"), PixelOptions(ColorMode.GRAY, 4, 4, ResizeMode.SQUASH))
    assert values.max() == values.min() == 0x80


def test_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (11, 10)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableImageError, match="DecompressionBomb"):
        read_pixels(str(tmp_path / "x.png"), PixelOptions(ColorMode.GRAY, 4, 4, ResizeMode.SQUASH))


def test_a_few_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 30, "b": 30})
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    description = import_images(make_spec(tmp_path), 1, silent)
    assert (description["unreadable_count"], description["unreadable"]) == (1, ["a/broken.png"])
    assert sum(split["count"] for split in description["splits"].values()) == 60


def test_many_unreadable_images_refuse_the_import(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 10, "b": 10})
    for index in range(3):
        (tmp_path / "images" / "a" / f"broken{index}.png").write_bytes(b"no image")
    spec = make_spec(tmp_path)
    with pytest.raises(ImportRefusedError, match=r"more than 5% of 23 images could not be read: a/broken\d.png"):
        import_images(spec, 1, silent)
    assert not Path(spec.target).exists()


def test_links_may_not_lead_out_of_the_data_roots(tmp_path: Path) -> None:
    root = write_images(tmp_path / "roots" / "images", {"a": 2, "b": 2})
    secret = write_images(tmp_path / "elsewhere", {"x": 1}) / "x" / "0000.png"
    (root / "a" / "stolen.png").symlink_to(secret)
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "inside.png").symlink_to(root / "a" / "0000.png")
    (root / "stolen").symlink_to(secret.parent)
    spec = make_spec(tmp_path, sources={"train": str(root)}, data_roots=(str(tmp_path / "roots"),))
    plan = make_plan(spec)
    assert plan.labels == ["a", "b"]
    names = {path for records in plan.splits.values() for _, path in records}
    assert names == {"a/0000.png", "a/0001.png", "b/0000.png", "b/0001.png", "b/inside.png"}


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.worker import import_images as worker

worker.BLOCK_IMAGES = 5
point = sys.argv[2]

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total):
    if point == "records" and done >= total // 2:
        die()

if point == "publish":
    worker._publish = die
if point == "report":
    publish = worker._publish
    worker._publish = lambda *arguments: (publish(*arguments), die())
worker.import_images(ImportSpec.read(Path(sys.argv[1])), 1, progress)
"""


@pytest.mark.parametrize(("point", "published"), [("records", False), ("publish", False), ("report", True)])
def test_a_kill_never_leaves_what_looks_finished_and_the_next_attempt_ends_it(
    tmp_path: Path, point: str, published: bool
) -> None:
    write_images(tmp_path / "images", {"a": 20, "b": 20})
    spec = make_spec(tmp_path)
    spec.write(tmp_path / "spec.json")
    code = subprocess.call([sys.executable, "-c", KILLED_AT, tmp_path / "spec.json", point])
    assert code == -signal.SIGKILL
    assert (Path(spec.staging) / "attempt-1").exists() is not published
    assert Path(spec.target).exists() is published
    description = import_images(spec, 2, silent)
    assert not list(Path(spec.staging).glob("attempt-*"))
    untouched = make_spec(tmp_path, target=str(tmp_path / "home" / "e"), staging=str(tmp_path / "s"))
    assert description["content_hash"] == import_images(untouched, 1, silent)["content_hash"]


def run_worker(tmp_path: Path, spec: ImportSpec) -> tuple[int, dict[str, Any]]:
    spec.write(tmp_path / "spec.json")
    (tmp_path / "job").mkdir()
    environment = {
        **os.environ,
        "DLMESH_JOB_ID": "j",
        "DLMESH_JOB_DIR": str(tmp_path / "job"),
        "DLMESH_JOB_ATTEMPT": "1",
    }
    command = [sys.executable, "-m", "datasets_service.worker.import_images", tmp_path / "spec.json"]
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
    assert code == 1
    assert "at least 2" in report["result"]["refused"]


def test_the_worker_starts_without_torch_and_grpc() -> None:
    code = (
        "import sys, datasets_service.worker.import_images; print(*{'torch', 'grpc', 'sqlalchemy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_service.worker.records.FIRST_MAP_BYTES", 65536)
    write_images(tmp_path / "images", {"a": 20, "b": 20}, size=(64, 64))
    description = import_images(make_spec(tmp_path, width=100, height=100), 1, silent)
    assert sum(len(read_records(split["path"])) for split in description["splits"].values()) == 40
