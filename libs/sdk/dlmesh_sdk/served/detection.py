"""Objects on pictures.

The program has `build_model(classes)`, `preprocess(image)`, and `find_objects(outputs)`: for each picture `boxes`
[N, 4] in pixels of the input, `labels` and `scores` [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dlmesh_sdk.served.base import Facts, Tensor
from dlmesh_sdk.served.images import ServedImages


class ServedDetection(ServedImages):
    """`OUTPUT__0` FP32 [N, 6]: xmin, ymin, xmax, ymax as parts of the picture's width and height, probability, index of
    the label; rows of probability 0 fill up what has fewer boxes than others of its batch."""

    task = "detection"
    needs: ClassVar[tuple[str, ...]] = ("labels",)

    @classmethod
    def facts(cls, serving: Mapping[str, Any]) -> Facts:
        labels = tuple(str(label) for label in serving["labels"])
        if not labels:
            raise ValueError("it names no labels")
        return Facts(
            cls.task, labels, (cls.input(serving),), (Tensor("OUTPUT__0", "FP32", (-1, 6)),), probabilities=False
        )

    def to_input(self, image: Image.Image) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(self.program.preprocess(image), np.float32)

    def build_model(self) -> Any:
        return self.program.build_model(len(self.labels))

    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        images = inputs["INPUT__0"]
        height, width = images.shape[2:]
        found = self.program.find_objects(module(images).cpu())
        # At least one row: Triton has no empty tensors.
        rows = torch.zeros(len(found), max([1, *(len(objects["scores"]) for objects in found)]), 6)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        for row, objects in zip(rows, found, strict=True):
            count = len(objects["scores"])
            row[:count, :4] = objects["boxes"] / scale
            row[:count, 4] = objects["scores"]
            row[:count, 5] = objects["labels"]
        return {"OUTPUT__0": rows}

    def result(self, output: np.ndarray[Any, Any], size: tuple[int, int], threshold: float) -> dict[str, Any]:
        height, width = size
        scores = []
        for *edges, probability, index in output[output[:, 4] > 0].tolist():
            if probability >= threshold:
                if not 0 <= index < len(self.labels):
                    raise ValueError(f"label {index:g} of {len(self.labels)}")
                box = [edge * side for edge, side in zip(edges, (width, height, width, height), strict=True)]
                scores.append({"index": int(index), "label": self.labels[int(index)], "prob": probability, "bbox": box})
        return {"scores": sorted(scores, key=lambda score: -score["prob"])}
