"""Encoded images inside records."""

from __future__ import annotations

import io

from PIL import Image


def decode_image(content: bytes | memoryview) -> Image.Image:
    """Decode an image file to mode L or RGB; ValueError when it is none, is cut short, or is a decompression bomb."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Loads the pixels: what is wrong with them shows here and not at some later touch.
            return image.copy() if image.mode in ("L", "RGB") else image.convert("RGB")
    # Decoders of damaged files raise what they like (SyntaxError, struct.error, DecompressionBombError, ...).
    except Exception as error:
        raise ValueError(f"not an image: {error}") from error
