"""The model.py of a Caffe net whose folder brings none: the net of the prototxt files beside it, as it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caffe_nets import serving

FOLDER = Path(__file__).parent


def build_model(num_classes: int, channels: int, height: int, width: int) -> Any:
    """A module of scores."""
    return serving.build_model(FOLDER, num_classes, channels, height, width)


def preprocess(image: Any, channels: int, height: int, width: int) -> Any:
    """A picture as float32 [channels, height, width]."""
    return serving.preprocess(FOLDER, image, channels, height, width)
