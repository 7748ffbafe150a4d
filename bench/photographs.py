"""Generated photographs: nothing is downloaded, and a JPEG decoder has as much to do as with a camera's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

DIFFERENT = 40


def photograph(dice: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth shapes with a sensor's noise."""
    shapes = Image.fromarray(dice.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8))
    smooth = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + dice.integers(-12, 13, (height, width, 1))).clip(0, 255).astype(np.uint8))


def write_class_folders(root: Path, count: int, width: int, height: int, classes: int = 10) -> None:
    """`count` JPEG files of quality 90 in a folder a class; only the first DIFFERENT have contents of their own."""
    dice = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, DIFFERENT)):
        file = io.BytesIO()
        photograph(dice, width, height).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}.jpg").write_bytes(contents[number % len(contents)])
