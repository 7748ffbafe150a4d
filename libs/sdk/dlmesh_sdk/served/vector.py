"""Numbers of pictures. The program has `build_model(length, channels, height, width)`, a module of vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from dlmesh_sdk.served.base import Facts, Tensor
from dlmesh_sdk.served.images import SIDES, ServedImages


class ServedVector(ServedImages):
    """`OUTPUT__0` FP32 [length], in the units of the dataset."""

    task = "vector"
    needs: ClassVar[tuple[str, ...]] = ("length", *SIDES)

    @classmethod
    def facts(cls, serving: Mapping[str, Any]) -> Facts:
        output = Tensor("OUTPUT__0", "FP32", (int(serving["length"]),))
        return Facts(cls.task, (), (cls.input(serving),), (output,), probabilities=False)

    def build_model(self) -> Any:
        return self.program.build_model(int(self.serving["length"]), **self.shape)

    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"OUTPUT__0": module(inputs["INPUT__0"]).float().cpu()}

    def result(self, output: np.ndarray[Any, Any], size: tuple[int, int], threshold: float) -> dict[str, Any]:
        return {"vector": [float(value) for value in output]}
