"""An image and the objects that it shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectBox:
    """One object: xmin, ymin, xmax and ymax in pixels from 0, the far edges exclusive, all inside the image.

    Difficult objects (Pascal VOC) and crowds (COCO) are left out of scores by custom.
    """

    label: str
    bbox: tuple[float, float, float, float]
    is_difficult: bool = False
    is_crowd: bool = False


@dataclass(frozen=True)
class ObjectImage:
    """`name` is as the source has it, `path` is the file; sizes are pixels."""

    name: str
    path: str
    width: int
    height: int
    boxes: tuple[ObjectBox, ...]
