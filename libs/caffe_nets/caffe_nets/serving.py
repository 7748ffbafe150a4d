"""What the served models of a Caffe folder need: its model.py passes these on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_nets.folder import read_folder
from caffe_nets.model import CaffeModel, placeholder_mean
from caffe_nets.pictures import to_pixels


def build_model(folder: str | Path, num_classes: int, channels: int, height: int, width: int) -> CaffeModel:
    """A module over the files in `folder` that takes pixels [n, channels, height, width] and answers scores
    [n, num_classes]; its weights are model_epoch_final.pth of a training."""
    files = read_folder(Path(folder))
    shape = (channels, *_picture(Path(folder), height, width))
    model = CaffeModel(files, shape, num_classes, placeholder_mean(files, shape))
    model.takes_pixels = True
    return model.eval()


def preprocess(folder: str | Path, image: Image.Image, channels: int, height: int, width: int) -> np.ndarray:
    """A picture as float32 [channels, height, width]: resized to the size of the dataset's, its middle taken."""
    rows, columns = _picture(Path(folder), height, width)
    pixels = to_pixels(image, channels, rows, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    return np.ascontiguousarray(pixels[:, top : top + height, left : left + width])


def _picture(folder: Path, height: int, width: int) -> tuple[int, int]:
    """Size of the pictures before they are cropped: serving.json beside the files knows it."""
    file = folder / "serving.json"
    if not file.is_file():
        return height, width
    serving = json.loads(file.read_text(encoding="utf-8"))
    return int(serving.get("picture_height", height)), int(serving.get("picture_width", width))
