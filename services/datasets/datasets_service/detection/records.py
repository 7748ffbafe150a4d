"""The records of a split: `annotations.jsonl`, an image a line, and where its lines begin.

`annotations.index` holds unsigned 64-bit little-endian numbers: the offset of every line, then the end of the file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any

from datasets_service.domain.object_image import ObjectBox, ObjectImage

LINES = "annotations.jsonl"
INDEX = "annotations.index"
BATCH_IMAGES = 256
BATCH_BOXES = 10_000
_OFFSET = Struct("<Q")


class ObjectImageWriter:
    """Writes the images of one split, in order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            self._lines = stack.enter_context((folder / LINES).open("wb"))
            self._index = stack.enter_context((folder / INDEX).open("wb"))
            self._files = stack.pop_all()

    def __enter__(self) -> ObjectImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._files:
            self._index.write(_OFFSET.pack(self._lines.tell()))

    def write(self, image: ObjectImage) -> None:
        """Append one image."""
        self._index.write(_OFFSET.pack(self._lines.tell()))
        self._lines.write(json.dumps(_to_json(image), ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read_object_images(folder: Path, start: int, length: int) -> Iterator[ObjectImage]:
    """Images `start` to `start + length`, as many of them as there are; only their lines are read."""
    with (folder / INDEX).open("rb") as index, (folder / LINES).open("rb") as lines:
        index.seek(start * _OFFSET.size)
        offsets = [offset for (offset,) in _OFFSET.iter_unpack(index.read((length + 1) * _OFFSET.size))]
        if len(offsets) < 2:
            return
        lines.seek(offsets[0])
        for begin, end in pairwise(offsets):
            yield _from_json(json.loads(lines.read(end - begin)))


class DiskObjectImages:
    """`ports.ObjectImages` on what imports published."""

    async def read(self, folder: str, start: int, length: int) -> AsyncIterator[ObjectImage]:
        """Batches are read in a thread: a slow disk does not stop the service, nor does a long slice fill it."""
        images = read_object_images(Path(folder), start, length)
        while batch := await asyncio.to_thread(_batch, images):
            for image in batch:
                yield image


def _batch(images: Iterator[ObjectImage]) -> list[ObjectImage]:
    batch, boxes = [], 0
    for image in images:
        batch.append(image)
        boxes += len(image.boxes)
        if len(batch) >= BATCH_IMAGES or boxes >= BATCH_BOXES:
            break
    return batch


def _to_json(image: ObjectImage) -> dict[str, Any]:
    boxes = [
        {"label": box.label, "bbox": box.bbox, "difficult": box.is_difficult, "crowd": box.is_crowd}
        for box in image.boxes
    ]
    return {"name": image.name, "path": image.path, "width": image.width, "height": image.height, "boxes": boxes}


def _from_json(values: dict[str, Any]) -> ObjectImage:
    boxes = (ObjectBox(box["label"], tuple(box["bbox"]), box["difficult"], box["crowd"]) for box in values.pop("boxes"))
    return ObjectImage(**values, boxes=tuple(boxes))
