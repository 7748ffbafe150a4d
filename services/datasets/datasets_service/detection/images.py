"""Looking at an image once: that it can be decoded, how large it is, and which bytes it is."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from datasets_service.detection.catalog import SourceImage
from datasets_service.images.pixels import (
    FORMATS,
    MAX_FILE_BYTES,
    MAX_JPEG_PIXELS,
    MAX_OTHER_PIXELS,
    MAX_WEBP_PIXELS,
    UnreadableImageError,
    require_pixels,
)
from datasets_service.sources.confined import SourceFileError, read_inside


@dataclass(frozen=True)
class SeenImage:
    """An image that can be decoded; sizes in pixels and bytes, `digest` is the SHA-256 of the file."""

    width: int
    height: int
    size_bytes: int
    digest: bytes


def look_at(image: SourceImage, data_roots: Sequence[Path]) -> SeenImage | str:
    """What the image is, or why it is left out."""
    if image.problem:
        return image.problem
    try:
        content = read_inside(image.path, data_roots, MAX_FILE_BYTES)
    except SourceFileError as error:
        return str(error)
    try:
        width, height = _decode(content)
    except UnreadableImageError as error:
        return str(error)
    # Decoders raise whatever they like on a file that lies.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return SeenImage(width, height, len(content), hashlib.sha256(content).digest())


def _decode(content: bytes) -> tuple[int, int]:
    with warnings.catch_warnings():
        # Pillow warns of odd files that it can read.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            most = {"JPEG": MAX_JPEG_PIXELS, "WEBP": MAX_WEBP_PIXELS}.get(str(image.format), MAX_OTHER_PIXELS)
            require_pixels(width, height, MAX_OTHER_PIXELS if image.mode == "CMYK" else most)
            # A JPEG at an eighth of its size: every byte is read, most of the arithmetic is left out.
            image.draft("L", (max(1, width // 8), max(1, height // 8)))
            image.load()
    return width, height
