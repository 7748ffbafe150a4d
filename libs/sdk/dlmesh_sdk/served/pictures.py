"""Pictures from strangers: what decodes, within limits, and nothing else."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

# Formats that Pillow decodes itself; others (EPS) would start programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# As an import of datasets has it: a picture of so many pixels takes some 200 MB while it is decoded.
MAX_PIXELS = 48 * 1024 * 1024
MAX_FILE_BYTES = 128 * 1024 * 1024


def open_picture(source: Path | bytes) -> Image.Image:
    """The decoded picture, the first one of several; ValueError in one line says why there is none.

    Its mode can be converted and resized: palettes become colours, 16 bits become 8, as when datasets are imported.
    """
    try:
        content = source if isinstance(source, bytes) else _read(source)
        if not content:
            raise ValueError("the file is empty")
        return _decode(content)
    # Decoders raise what they like (SyntaxError, struct.error, MemoryError, ...) on a file that lies.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(_without_address(reason)) from error


def _read(path: Path) -> bytes:
    # A pipe would be waited for.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("not a file")
        if facts.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{facts.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        return file.read(MAX_FILE_BYTES)


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")
        image.load()
        if image.mode.startswith("I"):
            # Pillow would clip 16-bit values to 255.
            wide = np.asarray(image).astype(np.uint32)
            return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
        if image.mode in ("P", "1"):
            # Indices and bits cannot be mixed.
            return image.convert("RGBA" if "transparency" in image.info else "RGB")
        return image.copy()


def _without_address(reason: str) -> str:
    return "not a picture that is decoded here" if "cannot identify image file" in reason else reason
