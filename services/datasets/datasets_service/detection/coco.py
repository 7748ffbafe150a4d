"""COCO: one JSON file with the images, the classes and the boxes of all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_service.detection.catalog import MAX_NAME_CHARACTERS, Catalog, RawBox, SourceImage, is_name, is_text
from datasets_service.detection.json_stream import JsonError, JsonObject
from datasets_service.detection.layouts import CocoFiles
from datasets_service.importers.base import ImportRefusedError
from datasets_service.sources.confined import SourceFileError, is_inside, open_inside

MAX_JSON_BYTES = 2 * 1024**3
# An annotation with its mask has thousands; Python needs up to fifty times as many bytes for what is nested.
MAX_ELEMENT_CHARACTERS = 8 * 1024 * 1024
MAX_CATEGORIES = 100_000
IMAGES_TRIED = 100


@dataclass
class CocoSource:
    """The images of one JSON file, for `source`, the split that it was given for.

    An image is its id as JSON text. `labels` are the names of the categories by id, known once it was loaded.
    """

    source: str
    layout: CocoFiles
    file: Path
    data_roots: Sequence[Path]
    labels: list[str] = field(default_factory=list)

    def load(self, catalog: Catalog) -> None:
        """Images and their boxes. ImportRefusedError when the file is no COCO file."""
        try:
            with open_inside(self.file, self.data_roots) as content:
                size_bytes = os.fstat(content.fileno()).st_size
                if size_bytes > MAX_JSON_BYTES:
                    raise ImportRefusedError(f"{self.file} has {size_bytes} bytes; at most {MAX_JSON_BYTES} are read")
                categories = self._read(JsonObject(content, MAX_ELEMENT_CHARACTERS), catalog)
        except (SourceFileError, JsonError, OSError) as error:
            raise ImportRefusedError(f"{self.file} cannot be read: {error}") from error
        catalog.name_categories(self.source, {_key(identity): name for identity, name in categories.items()})
        # Numbers before texts.
        ids = sorted(categories, key=lambda identity: (isinstance(identity, str), identity))
        self.labels = [categories[identity] for identity in ids]
        folder = self._image_folder(catalog)
        catalog.locate(self.source, lambda name: os.path.normpath(os.path.join(folder, name)))  # noqa: PTH118

    def _read(self, content: JsonObject, catalog: Catalog) -> dict[int | str, str]:
        categories: dict[int | str, str] = {}
        has_images = False
        for name, is_array in content.members():
            if name in ("images", "annotations", "categories") and not is_array:
                raise self._refusal(name, "no array")
            if name == "images":
                self._add_images(enumerate(content.elements()), catalog)
                has_images = True
            elif name == "annotations":
                catalog.add_boxes(self.source, self._boxes(enumerate(content.elements())))
            elif name == "categories":
                self._add_categories(enumerate(content.elements()), categories)
        if not has_images:
            raise ImportRefusedError(f"{self.file} lists no images")
        return categories

    def _add_images(self, elements: Iterator[tuple[int, Any]], catalog: Catalog) -> None:
        for number, element in elements:
            place = f"images[{number}]"
            key = _key(self._identity(place, element, "id"))
            name = element.get("file_name")
            problem = None
            if not isinstance(name, str) or not name or "\0" in name or not is_text(name):
                name, problem = f"{place} of {self.file.name}", "it has no usable file_name"
            if not catalog.add_image(SourceImage(self.source, key, name, "", problem), self.source):
                raise self._refusal(place, f"id {key} is there twice")

    def _boxes(self, elements: Iterator[tuple[int, Any]]) -> Iterator[tuple[str, RawBox]]:
        for number, element in elements:
            place = f"annotations[{number}]"
            yield _key(self._identity(place, element, "image_id")), self._box(place, element)

    def _box(self, place: str, annotation: Mapping[str, Any]) -> RawBox:
        category = self._identity(place, annotation, "category_id")
        bbox = annotation.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
            return RawBox(_key(category), problem=f"{place} of {self.file.name} has no bbox of four finite numbers")
        left, top, width, height = map(float, bbox)
        is_crowd = annotation.get("iscrowd") in (1, True)
        return RawBox(_key(category), left, top, left + width, top + height, is_crowd=is_crowd)

    def _add_categories(self, elements: Iterator[tuple[int, Any]], categories: dict[int | str, str]) -> None:
        names = set(categories.values())
        for number, element in elements:
            place = f"categories[{number}]"
            identity, name = self._identity(place, element, "id"), element.get("name")
            if not isinstance(name, str) or not is_name(name.strip()):
                raise self._refusal(place, f"its name is not up to {MAX_NAME_CHARACTERS} printable characters")
            if identity in categories or name.strip() in names:
                raise self._refusal(place, f"id {identity} or name {name!r} is there twice")
            if len(categories) >= MAX_CATEGORIES:
                raise self._refusal(place, f"there are more than {MAX_CATEGORIES}")
            categories[identity] = name.strip()
            names.add(name.strip())

    def _identity(self, place: str, element: Any, name: str) -> int | str:
        """An id: a whole number or a text."""
        value = element.get(name) if isinstance(element, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | str) or not is_text(str(value)):
            raise self._refusal(place, f"{name} is no whole number or text")
        return value

    def _image_folder(self, catalog: Catalog) -> str:
        """The folder that holds most of the first images: paths are relative to it."""
        names = catalog.names(self.source, IMAGES_TRIED)

        def held(folder: Path) -> int:
            paths = (folder / name for name in names)
            return sum(is_inside(path, self.data_roots) and os.path.isfile(path) for path in paths)  # noqa: PTH113

        return str(max(self.layout.image_folders(self.file), key=held))

    def _refusal(self, place: str, problem: str) -> ImportRefusedError:
        return ImportRefusedError(f"{self.file}: {place}: {problem}")


def _key(identity: int | str) -> str:
    return json.dumps(identity, ensure_ascii=False)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    # A whole number of hundreds of digits.
    except OverflowError:
        return False
