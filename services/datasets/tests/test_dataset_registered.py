"""Data that is there already is opened, counted and checked, and left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.words import BACKENDS, SourceType
from datasets_service.importers.base import ImportRefusedError
from datasets_service.importers.registry import importer_for
from datasets_service.storage.files import DiskSources
from datasets_service.worker.import_dataset import import_dataset
from recordkit.datum import encode_datum
from recordkit.example import ImageExample
from recordkit.tfrecord import frame
from servicekit.errors import ServiceError

LABELS = [0, 1, 1, 2, 1]


def write_lmdb(folder: Path, labels: list[int] = LABELS, side: int = 6) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for number, label in enumerate(labels):
                pixels = np.full((1, side, side), number, np.uint8)
                transaction.put(b"%08d" % number, encode_datum(pixels, label))
    return folder


def write_tfrecords(folder: Path, labels: list[int] = LABELS, texts: bool = False, name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with (folder / f"{name}-{shard:05d}-of-00002").open("wb") as file:
            for number, label in enumerate(labels):
                if number % 2 == shard:
                    text = f"animal {label}" if texts else ""
                    record = ImageExample(b"x" * 500, "jpeg", 6, 6, 1, label, text).serialize()
                    file.write(frame(record))
    return folder


def write_other(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 10)
    (folder / "deep" / "b.bin").write_bytes(b"b" * 20)
    return folder


WRITERS: dict[SourceType, Callable[[Path], Path]] = {
    SourceType.LMDB: write_lmdb,
    SourceType.TFRECORDS: write_tfrecords,
    SourceType.OTHER: write_other,
}
ALL = pytest.mark.parametrize("source_type", list(WRITERS))


def register(root: Path, source_type: SourceType, **paths: Path | str) -> tuple[ImportSpec, dict[str, Any]]:
    """Check as the service does, then run as the job does."""
    fields = {name: str(path) for name, path in paths.items()}
    request = DatasetRequest("n", source_type, BACKENDS[source_type][0], "local", **fields)
    options = importer_for(source_type).check(request, DiskSources((root,)))
    home = root.parent / f"home{len(list(root.parent.glob('home*')))}"
    (home / "staging").mkdir(parents=True)
    spec = ImportSpec(
        "d" * 32,
        "n",
        source_type,
        BACKENDS[source_type][0],
        options,
        (str(root),),
        str(home / "staging"),
        str(home / "target"),
    )
    seen: list[tuple[float, float]] = []
    description = import_dataset(spec, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    return spec, description


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@ALL
def test_data_is_registered_in_place(root: Path, source_type: SourceType) -> None:
    train = WRITERS[source_type](root / "set" / "train")
    test = WRITERS[source_type](root / "set" / "test")
    before = listing(root)
    spec, description = register(root, source_type, train_path="set/train", test_path=test)
    assert listing(root) == before
    assert {name: split["path"] for name, split in description["splits"].items()} == {
        "train": str(train),
        "test": str(test),
    }
    assert [path.name for path in Path(spec.target).iterdir()] == ["dataset.json"]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert description["size_bytes"] == sum(path.stat().st_size for path in files)
    again = register(root, source_type, train_path=train, test_path=test)[1]
    assert again["content_hash"] == description["content_hash"]
    # One byte more or another one is another content.
    victim = max(files, key=lambda path: path.stat().st_size)
    if source_type is SourceType.OTHER:
        victim.write_bytes(b"c" * victim.stat().st_size)
        assert register(root, source_type, train_path=train, test_path=test)[1]["content_hash"] != again["content_hash"]


@pytest.mark.parametrize("source_type", [SourceType.LMDB, SourceType.TFRECORDS])
def test_labels_are_counted(root: Path, source_type: SourceType) -> None:
    train = WRITERS[source_type](root / "set" / "train")
    description = register(root, source_type, train_path=train)[1]
    split = description["splits"]["train"]
    assert (split["count"], split["labels"]) == (5, {"0": 1, "1": 3, "2": 1})
    assert description["image"] == {"width": 6, "height": 6, "channels": 1}
    (root / "set" / "labels.txt").write_text("cat\ndog\ncow\nnone\n")
    description = register(root, source_type, train_path=train)[1]
    assert description["splits"]["train"]["labels"] == {"cat": 1, "dog": 3, "cow": 1, "none": 0}
    assert description["labels"] == ["cat", "dog", "cow", "none"]
    # A list that does not fit is not believed.
    (root / "set" / "labels.txt").write_text("cat\n")
    assert register(root, source_type, train_path=train)[1]["labels"] == ["0", "1", "2"]


def test_labels_are_named_by_the_records(root: Path) -> None:
    train = write_tfrecords(root / "train", texts=True)
    labels = register(root, SourceType.TFRECORDS, train_path=train)[1]["splits"]["train"]["labels"]
    assert labels == {"animal 0": 1, "animal 1": 3, "animal 2": 1}


def test_record_files_of_class_folders_and_single_ones(root: Path) -> None:
    for name in ("a", "b"):
        write_tfrecords(root / "train" / name)
    assert register(root, SourceType.TFRECORDS, train_path="train")[1]["splits"]["train"]["count"] == 10
    one = root / "train" / "a" / "train-00000-of-00002"
    assert register(root, SourceType.TFRECORDS, train_path=one)[1]["splits"]["train"]["count"] == 3
    file = write_lmdb(root / "environment") / "data.mdb"
    assert register(root, SourceType.LMDB, train_path=file)[1]["splits"]["train"]["count"] == 5


def test_records_of_another_kind_are_registered_without_labels(root: Path) -> None:
    (root / "train").mkdir()
    with lmdb.open(str(root / "train"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"k", b"\xff\xff no datum")
    description = register(root, SourceType.LMDB, train_path="train")[1]
    assert description["splits"]["train"] == {"path": str(root / "train"), "count": 1, "labels": {}}
    assert description["records_without_label"] == 1
    (root / "records").write_bytes(frame(b"\xff no example") + frame(b""))
    description = register(root, SourceType.TFRECORDS, train_path="records")[1]
    assert (description["splits"]["train"]["count"], description["records_without_label"]) == (2, 2)


def truncate_lmdb(folder: Path) -> None:
    os.truncate(folder / "data.mdb", (folder / "data.mdb").stat().st_size // 2 // 4096 * 4096)


def scribble_lmdb(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(os.urandom(65536))


def damage_records(folder: Path) -> None:
    file = sorted(folder.iterdir())[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def cut_records(folder: Path) -> None:
    file = sorted(folder.iterdir())[0]
    os.truncate(file, file.stat().st_size - 5)


def empty_records(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"")


def compress_records(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"\x1f\x8b\x08" + b"\0" * 50)


@pytest.mark.parametrize(
    ("source_type", "damage", "message"),
    [
        (SourceType.LMDB, truncate_lmdb, r"train is damaged|cannot be read as LMDB"),
        (SourceType.LMDB, scribble_lmdb, r"train cannot be read as LMDB: .*"),
        (SourceType.TFRECORDS, damage_records, r"train-00001-of-00002: the record at byte \d+ does not match|damaged"),
        (SourceType.TFRECORDS, cut_records, r"train-00000-of-00002: the record at byte \d+ is cut short"),
        (SourceType.TFRECORDS, empty_records, r"train has no records"),
        (SourceType.TFRECORDS, compress_records, r"train-00000-of-00002: compressed TFRecords"),
    ],
)
def test_damaged_data_is_refused_with_its_place(
    root: Path, source_type: SourceType, damage: Callable[[Path], None], message: str
) -> None:
    train = root / "train"
    write_lmdb(train, LABELS * 20, side=90) if source_type is SourceType.LMDB else write_tfrecords(train)
    damage(train)
    with pytest.raises(ImportRefusedError, match=message):
        register(root, source_type, train_path="train")


@pytest.mark.parametrize(
    ("source_type", "expected"),
    [
        (SourceType.LMDB, "an LMDB: a folder with data.mdb"),
        (SourceType.TFRECORDS, "a TFRecord file, or a folder of files"),
        (SourceType.OTHER, "a file, or a folder that is not empty"),
    ],
)
def test_folders_that_hold_nothing_are_refused_at_once(root: Path, source_type: SourceType, expected: str) -> None:
    (root / "empty").mkdir()
    with pytest.raises(ServiceError, match=rf"trainpath: .* allowed: {expected}"):
        register(root, source_type, train_path="empty")


@ALL
@pytest.mark.parametrize("path", ["", "nowhere", "/etc", "../outside"])
def test_paths_outside_or_nowhere_are_refused(root: Path, source_type: SourceType, path: str) -> None:
    with pytest.raises(ServiceError, match=r"trainpath: .* allowed: an existing path inside"):
        register(root, source_type, train_path=path)


def test_links_out_of_the_data_roots(root: Path, tmp_path: Path) -> None:
    outside = write_tfrecords(tmp_path / "outside")
    (root / "train").mkdir()
    (root / "train" / "stolen-00000-of-00001").symlink_to(outside / "train-00000-of-00002")
    with pytest.raises(ImportRefusedError, match="is a link that leaves the data roots"):
        register(root, SourceType.TFRECORDS, train_path="train")
    (root / "train" / "mine").write_bytes(b"1")
    (root / "train" / "itself").symlink_to("itself")
    os.mkfifo(root / "train" / "pipe")
    assert register(root, SourceType.OTHER, train_path="train")[1]["splits"]["train"]["count"] == 1


def test_a_mean_that_is_given_is_handed_through(root: Path) -> None:
    train = write_lmdb(root / "train")
    np.save(root / "mean.npy", np.zeros(1))
    spec, description = register(root, SourceType.LMDB, train_path=train, mean_file="mean.npy")
    assert description["mean_file"] == str(root / "mean.npy")
    assert replace(spec.options) == ImportOptions(train_path=str(train), mean_file=str(root / "mean.npy"))


def test_an_environment_that_is_a_link_out_of_the_data_roots(root: Path, tmp_path: Path) -> None:
    outside = write_lmdb(tmp_path / "outside")
    (root / "train").mkdir()
    (root / "train" / "data.mdb").symlink_to(outside / "data.mdb")
    with pytest.raises(ImportRefusedError, match=r"train/data.mdb is a link that leaves the data roots"):
        register(root, SourceType.LMDB, train_path="train")


def test_labels_are_read_from_inside_the_data_roots_only(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("one\ntwo\nthree\n")
    train = write_lmdb(root / "set" / "train")
    (root / "set" / "labels.txt").symlink_to(tmp_path / "secrets")
    assert register(root, SourceType.LMDB, train_path=train)[1]["labels"] == ["0", "1", "2"]
    # A data root may be the split itself.
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    write_tfrecords(root)
    assert register(root, SourceType.TFRECORDS, train_path=root)[1]["labels"] == ["0", "1", "2"]


def test_a_label_list_that_cannot_be_read_is_named(root: Path) -> None:
    train = write_lmdb(root / "set" / "train")
    (root / "set" / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImportRefusedError, match=r"set/labels.txt cannot be read"):
        register(root, SourceType.LMDB, train_path=train)


def test_class_folders_of_other_data_are_counted_when_a_list_names_them(root: Path) -> None:
    for name, count in (("cat", 2), ("dog", 1)):
        (root / "set" / "train" / name / "deep").mkdir(parents=True)
        for number in range(count):
            (root / "set" / "train" / name / "deep" / f"{number}.bin").write_bytes(b"x")
    (root / "set" / "train" / "cat" / "more.bin").write_bytes(b"x")
    assert register(root, SourceType.OTHER, train_path="set/train")[1]["labels"] == []
    (root / "set" / "labels.txt").write_text("cat\ndog\ncow\n")
    description = register(root, SourceType.OTHER, train_path="set/train")[1]
    assert description["labels"] == ["cat", "dog", "cow"]
    assert description["splits"]["train"]["count"] == 4
    assert description["splits"]["train"]["labels"] == {"cat": 3, "dog": 1, "cow": 0}
    (root / "set" / "labels.txt").write_text("horse\n")
    assert register(root, SourceType.OTHER, train_path="set/train")[1]["labels"] == []


def test_too_many_labels_are_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write_lmdb(root / "set" / "train")
    monkeypatch.setattr("datasets_service.importers.registered.MAX_LABELS", 2)
    description = register(root, SourceType.LMDB, train_path=train)[1]
    assert (description["labels"], description["splits"]["train"]["labels"]) == ([], {})
    assert description["splits"]["train"]["count"] == 5


def lie_about_entries(folder: Path) -> None:
    """The number of records stands in both meta pages; 8 bytes that hold 100 stand nowhere else."""
    content = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(content.replace((100).to_bytes(8, "little"), (7).to_bytes(8, "little")))


def test_an_environment_that_lies_about_its_size(root: Path) -> None:
    lie_about_entries(write_lmdb(root / "train", LABELS * 20))
    with pytest.raises(ImportRefusedError, match=r"train cannot be read as LMDB: it says that it has 7 records"):
        register(root, SourceType.LMDB, train_path="train")


@ALL
def test_a_source_that_may_not_be_written_is_registered(root: Path, source_type: SourceType) -> None:
    train = WRITERS[source_type](root / "set" / "train")
    folders = [train, *(path for path in train.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = listing(root)
    try:
        assert register(root, source_type, train_path=train)[1]["splits"]["train"]["count"] > 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert listing(root) == before
