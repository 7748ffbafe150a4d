"""Pascal VOC: an XML file an image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from datasets_service.detection.catalog import MAX_NAME_CHARACTERS, Catalog, RawBox, SourceImage, is_name, is_text
from datasets_service.detection.layouts import VocRoot
from datasets_service.images.class_folders import SUFFIXES
from datasets_service.importers.base import ImportRefusedError
from datasets_service.sources.confined import SourceFileError, open_inside, read_inside
from datasets_service.sources.cores import Cores

MAX_XML_BYTES = 8 * 1024 * 1024
MAX_LINE_BYTES = 4096
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocSource:
    """The images of `layout`, or only those of `lists` (by split), for `source`, the split that it was given for."""

    source: str
    layout: VocRoot
    lists: Mapping[str, Path]
    data_roots: Sequence[Path]

    def load(self, catalog: Catalog, cores: Cores) -> None:
        """Images, then their boxes. ImportRefusedError when a folder or list cannot be read."""
        self._add_images(catalog)
        if self.lists:
            self._keep_listed(catalog)
        else:
            for name in filter(is_text, _names(self.layout.annotations, {".xml"})):
                problem = "JPEGImages has no image of this name"
                image = SourceImage(self.source, Path(name).stem, f"{self.layout.annotations.name}/{name}", "", problem)
                catalog.add_image(image, self.source)
        read = partial(read_annotation, self.layout.annotations, self.data_roots)
        crashed = [RawBox(problem=f"{self.layout.annotations.name}: its file crashes the parser")]
        found = cores.map(read, catalog.keys(self.source), catalog.count(self.source), crashed)
        catalog.add_boxes(self.source, ((key, box) for key, boxes in found for box in boxes))

    def _add_images(self, catalog: Catalog) -> None:
        folder = self.layout.images
        split = "" if self.lists else self.source
        for name in _names(folder, SUFFIXES):
            key = Path(name).stem
            if not is_text(name):
                named = ascii(name)
                catalog.add_image(SourceImage(self.source, named, named, "", "its name is not UTF-8"), split)
                continue
            if not catalog.add_image(SourceImage(self.source, key, name, str(folder / name)), split):
                catalog.leave_out(self.source, key, "JPEGImages has two images of this name")

    def _keep_listed(self, catalog: Catalog) -> None:
        for split, file in self.lists.items():
            for key in _lines(file, self.data_roots):
                earlier = catalog.assign(self.source, key, split)
                if earlier is None:
                    missing = SourceImage(self.source, key, key, "", "JPEGImages has no image of this name")
                    catalog.add_image(missing, split)
                elif earlier not in ("", split) and file.stem != "trainval":
                    raise ImportRefusedError(f"{file}: {key!r} is in the list for {earlier} too")
        catalog.forget_unassigned()


def read_annotation(folder: Path, data_roots: Sequence[Path], key: str) -> list[RawBox]:
    """The boxes of the image `key`, none when nothing is said about it. A problem takes the place of the boxes."""
    file = folder / f"{key}.xml"
    try:
        # An image that nobody annotated shows nothing.
        if not os.path.lexists(file):
            return []
        return list(_boxes(_parse(read_inside(file, data_roots, MAX_XML_BYTES))))
    except (SourceFileError, _AnnotationError) as error:
        return [RawBox(problem=f"{folder.name}/{file.name}: {error}")]


class _AnnotationError(Exception):
    """What an annotation says makes no sense."""


class _Builder(ElementTree.TreeBuilder):
    """Refuses what could define entities."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise _AnnotationError("documents with a DOCTYPE are not read")


def _parse(content: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(content)
        root: ElementTree.Element = parser.close()
    # An encoding that Python does not know is a LookupError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise _AnnotationError(f"no XML: {error}") from error
    return root


def _boxes(annotation: ElementTree.Element) -> Iterator[RawBox]:
    for number, entry in enumerate(annotation.iterfind("object"), 1):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise _AnnotationError(f"object {number} has no name")
        if not is_name(name):
            raise _AnnotationError(
                f"object {number}: the name {name[:40]!r} is not up to {MAX_NAME_CHARACTERS} printable characters"
            )
        texts = {corner: entry.findtext(f"bndbox/{corner}") for corner in CORNERS}
        try:
            xmin, ymin, xmax, ymax = (float(text or "nothing") for text in texts.values())
        except ValueError:
            raise _AnnotationError(f"object {number} ({name}) has no bndbox of four numbers") from None
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise _AnnotationError(f"object {number} ({name}) has no bndbox of four finite numbers")
        # VOC counts pixels from 1, and the far corner is part of the box.
        yield RawBox(name, xmin - 1, ymin - 1, xmax, ymax, (entry.findtext("difficult") or "").strip() == "1")


def _names(folder: Path, suffixes: frozenset[str] | set[str]) -> Iterator[str]:
    """Names of the files of a folder, hidden ones apart."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in suffixes:  # noqa: PTH122
                    continue
                yield entry.name
    except OSError as error:
        raise ImportRefusedError(f"{folder} cannot be read: {error.strerror}") from error


def _lines(file: Path, data_roots: Sequence[Path]) -> Iterator[str]:
    try:
        with open_inside(file, data_roots) as content:
            while line := content.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise ImportRefusedError(f"{file} has a line of more than {MAX_LINE_BYTES} bytes")
                if text := line.decode("utf-8-sig").strip():
                    yield text
    except (SourceFileError, OSError, UnicodeDecodeError) as error:
        raise ImportRefusedError(f"{file} cannot be read: {error}") from error
