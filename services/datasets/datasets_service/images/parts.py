"""The work of one decoding process: a part of the manifest becomes a file of ready records."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recordkit.datum import Datum, encode_datum
from recordkit.example import ImageExample
from recordkit.lmdb_records import open_lmdb
from recordkit.tfrecord import frame

from datasets_service.domain.words import Backend
from datasets_service.images.manifest import Part, PlannedImage
from datasets_service.images.pixels import (
    MAX_FILE_BYTES,
    PixelOptions,
    UnreadableImageError,
    encode,
    is_jpeg,
    read_pixels,
)
from datasets_service.sources.confined import MissingSourceFileError, SourceFileError, open_inside

MAX_KEY_NAME_BYTES = 480


class SourceChangedError(Exception):
    """An image is no longer what it was when the import was planned; names it."""


@dataclass(frozen=True)
class Recipe:
    """How images become records: the same for all parts. `folders` by split; `labels` in label order; no image may lie
    outside `data_roots`."""

    backend: Backend
    pixels: PixelOptions
    folders: dict[str, str]
    labels: list[str]
    data_roots: tuple[Path, ...]
    # Values of the target vector that is recorded instead of a label.
    vector_length: int = 0
    # Folder of a dataset that was made of the same folders in the same way, to take over records from.
    earlier: str = ""


@dataclass(frozen=True)
class EncodedPart:
    """Ready records lie one after the other in `file`; `places` are (bytes of key, bytes of record).

    `digest` is of keys and records; `unreadable` are (path, why). `pixel_sum` is uint32 [channels, height, width] of
    training records (BGR when there are three channels), None for others.
    """

    part: Part
    file: str
    places: list[tuple[int, int]]
    digest: bytes
    counts: dict[int, int]
    unreadable: list[tuple[str, str]]
    pixel_sum: np.ndarray | None


def encode_part(part: Part, recipe: Recipe, folder: str, crashing: frozenset[int] = frozenset()) -> EncodedPart:
    """Decode, resize and encode; SourceChangedError when an image changed since it was planned. `crashing` are numbers
    of images that no process survives."""
    file = os.path.join(folder, f"{part.position:010d}")  # noqa: PTH118
    places: list[tuple[int, int]] = []
    unreadable: list[tuple[str, str]] = []
    counts: Counter[int] = Counter()
    digest = hashlib.sha256()
    channels, height, width = recipe.pixels.shape
    # 32 bits hold the sum of a part.
    pixel_sum = np.zeros((height, width, channels), np.uint32)
    with open(file, "wb") as output:  # noqa: PTH123
        for image in part.images:
            try:
                if image.number in crashing:
                    raise UnreadableImageError("the decoder crashed")
                pixels, lossy = _pixels(f"{recipe.folders[part.split]}/{image.path}", image, recipe)
            except UnreadableImageError as error:
                unreadable.append((image.path, str(error)))
                continue
            if recipe.backend is Backend.TFRECORDS:
                key, record = b"", frame(_example(image, recipe, pixels, lossy=lossy))
            else:
                key, record = record_key(image.number, image.path), _datum(image, pixels)
            output.write(key)
            output.write(record)
            digest.update(key)
            digest.update(record)
            places.append((len(key), len(record)))
            counts[image.label] += 1
            if part.split == "train":
                pixel_sum += pixels.reshape(pixel_sum.shape)
    summed = pixel_sum[:, :, ::-1].transpose(2, 0, 1) if part.split == "train" else None
    return EncodedPart(part, file, places, digest.digest(), dict(counts), unreadable, summed)


def record_key(number: int, path: str) -> bytes:
    """Where a record lies in an LMDB: in the order of numbers."""
    return b"%08d_" % number + os.fsencode(path)[-MAX_KEY_NAME_BYTES:]


def _pixels(file: str, image: PlannedImage, recipe: Recipe) -> tuple[np.ndarray, bool]:
    """Of the record that an earlier import made, or of the file; and whether the file had lost something already."""
    if recipe.earlier and image.earlier:
        split, number = image.earlier
        with open_lmdb(f"{recipe.earlier}/{split}").begin(buffers=True) as transaction:
            # Left out then, it is looked at again.
            if (record := transaction.get(record_key(number, image.path))) is not None:
                planes = np.frombuffer(Datum.parse(record).data, np.uint8).reshape(recipe.pixels.shape)
                turned = planes[0] if len(planes) == 1 else planes[::-1].transpose(1, 2, 0)
                return np.array(turned), False
    content = _read(file, image, recipe.data_roots)
    return read_pixels(content, recipe.pixels), is_jpeg(content)


def _read(path: str, image: PlannedImage, roots: Sequence[Path]) -> bytes:
    if image.size > MAX_FILE_BYTES:
        raise UnreadableImageError(f"{image.size} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        with open_inside(path, roots) as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (image.size, image.modified_ns):
                raise SourceChangedError(f"{path} changed while it was imported; import again when it is at rest")
            return file.read()
    except MissingSourceFileError as error:
        if image.size >= 0:
            raise SourceChangedError(f"{path} vanished while it was imported") from error
        raise UnreadableImageError("there is no such file") from error
    except SourceFileError as error:
        raise UnreadableImageError(str(error)) from error
    except OSError as error:
        raise UnreadableImageError(str(error.strerror)) from error


def _datum(image: PlannedImage, pixels: np.ndarray) -> bytes:
    vector = np.frombuffer(image.vector, np.float32).tolist() if image.vector else ()
    # Caffe's order of channels is BGR. Copied by numpy: the bytes of a view are gathered one by one.
    planes = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))
    return encode_datum(planes, image.label, vector)


def _example(image: PlannedImage, recipe: Recipe, pixels: np.ndarray, *, lossy: bool) -> bytes:
    encoded, image_format = encode(pixels, lossy=lossy)
    return ImageExample(
        encoded=encoded,
        format=image_format,
        height=pixels.shape[0],
        width=pixels.shape[1],
        channels=recipe.pixels.color_mode.channels,
        label=image.label,
        text=recipe.labels[image.label],
        filename=image.path,
    ).serialize()
