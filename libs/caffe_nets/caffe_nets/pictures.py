"""From records to the input of a net: channel order, resizing, and Caffe's transformation of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from dlmesh.datasets.v1 import records_pb2
from google.protobuf.message import DecodeError
from PIL import Image
from torch import Tensor

from caffe_nets.schema import CaffeError

MEAN_FILE = "mean.binaryproto"


def to_pixels(image: Image.Image, channels: int, height: int, width: int) -> np.ndarray:
    """A picture as float32 [channels, height, width], 0 to 255, blue first when there are three channels."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    return pixels[None].copy() if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)[::-1])


def read_mean(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """The mean picture of a dataset, float32 of `shape`; CaffeError when it is not one."""
    try:
        message = records_pb2.MeanImage.FromString(file.read_bytes())
        mean = torch.tensor(message.data, dtype=torch.float32)
        return mean.reshape(message.channels, message.height, message.width).expand(shape).contiguous()
    except (OSError, DecodeError, RuntimeError) as error:
        raise CaffeError(f"mean_file: the mean of the dataset, {file.name}, cannot be used: {error}") from error


class Transform:
    """A data layer's transform_param: (pixels - mean) * scale, with crop and mirror at random while training.

    `shape` is [channels, height, width] of the pictures, `mean_image` that of the dataset when the layer names a
    mean_file. CaffeError when the parameters contradict each other or do not fit the pictures.
    """

    def __init__(self, parameter: Any, shape: tuple[int, int, int], mean_image: Tensor | None) -> None:
        values = list(parameter.mean_value)
        if values and parameter.mean_file:
            raise CaffeError("transform_param: give mean_file or mean_value, not both")
        if values and len(values) not in (1, shape[0]):
            raise CaffeError(f"transform_param: there are {len(values)} mean_value; allowed: 1 or {shape[0]}")
        if parameter.mean_file and mean_image is None:
            raise CaffeError(f"transform_param: mean_file is given, but the dataset has no {MEAN_FILE}")
        self.scale, self.mirror, self.crop_size = parameter.scale, parameter.mirror, parameter.crop_size
        self.shape = shape
        channels, height, width = shape
        self.side = (self.crop_size, self.crop_size) if self.crop_size else (height, width)
        self.mean = torch.zeros(channels, 1, 1)
        if values:
            self.mean = torch.tensor(values).expand(channels)[:, None, None].clone()
        elif parameter.mean_file and mean_image is not None:
            self.mean = mean_image

    def __call__(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform [n, channels, height, width]; at random with a generator, else from the middle and unmirrored."""
        pixels = (pixels - self.mean) * self.scale
        samples = len(pixels)
        _, height, width = self.shape
        rows, columns = height - self.side[0], width - self.side[1]
        if generator is None:
            return _cropped(pixels, rows // 2, columns // 2, self.side)
        if rows or columns:
            tops = torch.randint(rows + 1, (samples,), generator=generator).tolist()
            lefts = torch.randint(columns + 1, (samples,), generator=generator).tolist()
            cropped = zip(pixels, tops, lefts, strict=True)
            pixels = torch.stack([_cropped(picture, top, left, self.side) for picture, top, left in cropped])
        if self.mirror:
            flips = torch.randint(2, (samples, 1, 1, 1), generator=generator).bool()
            pixels = torch.where(flips, pixels.flip(-1), pixels)
        return pixels

    @property
    def middle_mean(self) -> Tensor:
        """The mean of what a net sees when nothing is random: [channels, height, width], or [channels, 1, 1]."""
        _, height, width = self.shape
        if self.mean.shape[1:] == (1, 1):
            return self.mean
        return _cropped(self.mean, (height - self.side[0]) // 2, (width - self.side[1]) // 2, self.side)


def _cropped(pixels: Tensor, top: int, left: int, side: tuple[int, int]) -> Tensor:
    return pixels[..., top : top + side[0], left : left + side[1]]
