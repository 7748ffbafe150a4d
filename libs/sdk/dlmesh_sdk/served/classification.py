"""Pictures of one label each. The program has `build_model(classes, channels, height, width)`, a module of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from dlmesh_sdk.served.base import Facts, Tensor, scores_of
from dlmesh_sdk.served.images import SIDES, ServedImages


class ServedClassification(ServedImages):
    """`OUTPUT__0` FP32 [labels]: probabilities."""

    task = "classification"
    needs: ClassVar[tuple[str, ...]] = ("labels", *SIDES)

    @classmethod
    def facts(cls, serving: Mapping[str, Any]) -> Facts:
        labels = tuple(str(label) for label in serving["labels"])
        output = Tensor("OUTPUT__0", "FP32", (len(labels),))
        return Facts(cls.task, labels, (cls.input(serving),), (output,), probabilities=True)

    def build_model(self) -> Any:
        return self.program.build_model(len(self.labels), **self.shape)

    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"OUTPUT__0": module(inputs["INPUT__0"]).float().softmax(1).cpu()}

    def result(self, output: np.ndarray[Any, Any], size: tuple[int, int], threshold: float) -> dict[str, Any]:
        return scores_of(output, self.labels, threshold)
