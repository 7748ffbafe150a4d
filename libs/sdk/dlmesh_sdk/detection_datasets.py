"""Torch datasets over imported object detection data: images that stay where they are, and the boxes on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from workerkit.heartbeat import heartbeat_of_the_only_rank

from dlmesh_sdk.served.pictures import open_picture
from dlmesh_sdk.wrong_data import WrongDataError

LINES, INDEX = "annotations.jsonl", "annotations.index"

Preprocess = Callable[[Image.Image], np.ndarray]


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """(float32 CHW tensor, target), an image each.

    `path` is the folder of a split; `labels` are the classes, whose places are the label indices. `preprocess` turns a
    PIL image into the float32 CHW array the model takes; boxes are scaled with it. A target has

    - `boxes`: float32 [N, 4], xmin, ymin, xmax, ymax in pixels of the tensor, the far edges exclusive,
    - `labels`: int64 [N],
    - `ignored`: bool [N], true for what the dataset marks as difficult or as a crowd,
    - `size`: int64 [2], height and width of the image file.

    Files are opened for each sample: any number of processes may read.
    """

    def __init__(self, path: str | Path, labels: Sequence[str], preprocess: Preprocess) -> None:
        self.path, self.preprocess = Path(path), preprocess
        self._places = {label: place for place, label in enumerate(labels)}
        try:
            self._offsets = np.fromfile(self.path / INDEX, "<u8")
        except OSError as error:
            raise WrongDataError(
                f"a split of an object detection dataset is needed ({error.strerror})", path
            ) from error

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        heartbeat_of_the_only_rank()
        annotation = self.annotation(index)
        try:
            image = open_picture(Path(annotation["path"]))
            width, height = image.size
            pixels = torch.from_numpy(self.preprocess(image))
        except (OSError, ValueError) as error:
            raise ValueError(f"{annotation['path']}: {error}") from error
        scale = torch.tensor([pixels.shape[2] / width, pixels.shape[1] / height] * 2)
        boxes = annotation["boxes"]
        return pixels, {
            "boxes": torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32).reshape(-1, 4) * scale,
            "labels": torch.tensor([self._place(box["label"]) for box in boxes], dtype=torch.int64),
            "ignored": torch.tensor([box["difficult"] or box["crowd"] for box in boxes], dtype=torch.bool),
            "size": torch.tensor([height, width]),
        }

    def annotation(self, index: int) -> dict[str, Any]:
        """What is known of an image: name, path, width, height, and boxes (label, bbox in its own pixels, difficult,
        crowd)."""
        number = range(len(self))[index]
        begin, end = (int(offset) for offset in self._offsets[number : number + 2])
        with (self.path / LINES).open("rb") as lines:
            lines.seek(begin)
            annotation: dict[str, Any] = json.loads(lines.read(end - begin))
        return annotation

    def _place(self, label: str) -> int:
        try:
            return self._places[label]
        except KeyError:
            raise ValueError(f"{self.path}: class {label!r} is none of {', '.join(self._places)}") from None


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images of one size [B, C, H, W] and their targets, which have different numbers of boxes."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)
