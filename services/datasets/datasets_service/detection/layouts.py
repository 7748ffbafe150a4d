"""Telling Pascal VOC from COCO by what a folder or file holds."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datasets_service.detection.json_stream import JsonError, JsonObject
from datasets_service.images.class_folders import SPLIT_WORDS
from datasets_service.sources.confined import SourceFileError, is_inside, open_inside

ALLOWED = (
    "a Pascal VOC root (a folder with JPEGImages and Annotations), or COCO: a JSON file with images, annotations and"
    " categories beside its images, a folder with one such file and its images, or with annotations/instances_*.json"
)
MAX_JSON_FILES = 20
MAX_SNIFFED_BYTES = 4 * 1024 * 1024
COCO_MEMBERS = frozenset({"images", "annotations", "categories"})


class UnknownLayoutError(Exception):
    """The source is of no known form; says what is wrong with it."""


@dataclass(frozen=True)
class VocRoot:
    """Images in `JPEGImages`, `Annotations/<name>.xml` for each, lists of names in `ImageSets/Main/<split>.txt`."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "JPEGImages"

    @property
    def annotations(self) -> Path:
        return self.root / "Annotations"

    def list_of(self, split: str) -> Path | None:
        """The list of a split; training also takes trainval.txt."""
        names = ("train.txt", "trainval.txt") if split == "train" else (f"{split}.txt",)
        files = (self.root / "ImageSets" / "Main" / name for name in names)
        return next((file for file in files if file.is_file()), None)


@dataclass(frozen=True)
class CocoFiles:
    """A JSON file a split; a lone file, under the empty name, is whatever split it is named for.

    Images are looked for in `root` and its folders as well as beside the file.
    """

    root: Path
    files: Mapping[str, Path]

    def file_of(self, split: str) -> Path | None:
        """The JSON file of train, val or test."""
        return self.files.get("") or self.files.get(split)

    def image_folders(self, file: Path) -> list[Path]:
        """Where paths in `file` may begin, in the order in which they are tried."""
        word = file.stem.removeprefix("instances_")
        folders = [file.parent, file.parent / "images", self.root, self.root / "images"]
        return list(dict.fromkeys([*folders, self.root / word, self.root / "images" / word]))


def recognise(path: Path, data_roots: Sequence[Path]) -> VocRoot | CocoFiles:
    """The layout of `path`; UnknownLayoutError when it has none."""
    if path.is_file():
        if not _is_coco(path, data_roots):
            raise UnknownLayoutError("it is no COCO JSON file")
        return CocoFiles(_root_of(path.parent), {"": path})
    voc = VocRoot(path)
    if voc.images.is_dir() and voc.annotations.is_dir():
        for folder in (voc.images, voc.annotations):
            if not is_inside(folder, data_roots):
                raise UnknownLayoutError(f"its {folder.name} leads out of the data roots")
        return voc
    if found := _coco_files(path, "", data_roots):
        if len(found) > 1:
            raise UnknownLayoutError(f"it holds several COCO files: {', '.join(file.name for file in found)}")
        return CocoFiles(_root_of(path), {"": found[0]})
    instances = _coco_files(path / "annotations", "instances_", data_roots)
    if len(instances) == 1:
        return CocoFiles(path, {"": instances[0]})
    if instances:
        return CocoFiles(path, _by_split(instances))
    raise UnknownLayoutError("it is neither")


def _root_of(folder: Path) -> Path:
    return folder.parent if folder.name == "annotations" else folder


def _coco_files(folder: Path, prefix: str, data_roots: Sequence[Path]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            matching = (e.name for e in entries if e.name.endswith(".json") and e.name.startswith(prefix))
            names = sorted(islice(matching, MAX_JSON_FILES + 1))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnknownLayoutError(f"{folder.name} cannot be read: {error.strerror}") from error
    # Tools that write a JSON file an image make folders of a million.
    if len(names) > MAX_JSON_FILES:
        return []
    return [folder / name for name in names if _is_coco(folder / name, data_roots)]


def _is_coco(file: Path, data_roots: Sequence[Path]) -> bool:
    try:
        with open_inside(file, data_roots) as content:
            members = JsonObject(io.BytesIO(content.read(MAX_SNIFFED_BYTES)), MAX_SNIFFED_BYTES).members()
            return any(name in COCO_MEMBERS and is_array for name, is_array in islice(members, 100))
    except (JsonError, SourceFileError, OSError):
        return False


def _by_split(files: Sequence[Path]) -> dict[str, Path]:
    """instances_train2017.json is for training, and so on."""
    splits: dict[str, Path] = {}
    for file in files:
        word = file.stem.removeprefix("instances_").rstrip("0123456789_-").casefold()
        split = SPLIT_WORDS.get(word)
        if split is None:
            raise UnknownLayoutError(f"{file.name} names none of train, val and test")
        if split in splits:
            raise UnknownLayoutError(f"both {splits[split].name} and {file.name} are for {split}")
        splits[split] = file
    return splits
