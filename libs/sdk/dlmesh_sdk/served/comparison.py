"""Which pictures are alike: vectors of pictures, near where the pictures are similar.

The program has `build_model(length, channels, height, width)`, a module of vectors of length 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from dlmesh_sdk.served.images import SIDES
from dlmesh_sdk.served.vector import ServedVector


class ServedComparison(ServedVector):
    """`OUTPUT__0` FP32 [length]; pictures are similar whose vectors are nearer than `similar_below`."""

    task = "comparison"
    needs: ClassVar[tuple[str, ...]] = ("length", "similar_below", *SIDES)

    def compare(self, first: Sequence[float], second: Sequence[float]) -> tuple[float, bool]:
        distance = math.dist(first, second)
        return distance, distance < float(self.serving["similar_below"])
