"""What models of pictures share. Their program has `preprocess(image, ...)`, a PIL image as float32 [C, H, W]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dlmesh_sdk.served.base import Encoded, Item, Served, Tensor, Unreadable
from dlmesh_sdk.served.pictures import open_picture

SIDES = ("channels", "height", "width")


class ServedImages(Served):
    """Pictures in, `INPUT__0` FP32 [channels, height, width] as `preprocess` makes it."""

    needs: ClassVar[tuple[str, ...]] = SIDES

    def __init__(self, serving: Mapping[str, Any], program: Any) -> None:
        super().__init__(serving, program)
        self.shape = {side: int(serving[side]) for side in SIDES if side in serving}

    def to_input(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """One picture as the model takes it."""
        return np.ascontiguousarray(self.program.preprocess(image, **self.shape), np.float32)

    def items(self, file: Path, name: str) -> Iterator[Item]:
        yield Item(name, file)

    def item(self, content: bytes, sample_id: str = "") -> Item:
        return Item(sample_id, content)

    def encode(self, items: Sequence[Item]) -> Encoded:
        pixels: list[np.ndarray[Any, Any]] = []
        sizes: list[tuple[int, int]] = []
        errors: dict[str, str] = {}
        for item in items:
            try:
                if isinstance(item.value, Unreadable):
                    raise ValueError(item.value.reason)
                image = open_picture(item.value)
                prepared = self.to_input(image)
                if pixels and prepared.shape != pixels[0].shape:
                    raise ValueError(f"preprocess made {prepared.shape} of it, and {pixels[0].shape} of others")
            # Also what the model's own preprocess makes of a picture that it did not expect.
            except Exception as error:
                errors[item.sample_id] = str(error) or type(error).__name__
                continue
            pixels.append(prepared)
            sizes.append((image.height, image.width))
        inputs = {"INPUT__0": np.stack(pixels)} if pixels else {}
        return Encoded(tuple(item.sample_id for item in items), inputs, errors, tuple(sizes))

    @classmethod
    def input(cls, serving: Mapping[str, Any]) -> Tensor:
        """INPUT__0; any size where serving.json does not say it. Keras has the channels last."""
        channels, height, width = (int(serving.get(side, -1)) for side in SIDES)
        is_keras = serving.get("framework") == "TensorFlow"
        return Tensor("INPUT__0", "FP32", (height, width, channels) if is_keras else (channels, height, width))
