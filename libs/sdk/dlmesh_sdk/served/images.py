"""What models of pictures share. Their program has `preprocess(image, ...)`, a PIL image as float32 [C, H, W]."""

from __future__ import annotations

import threading
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
        self._calls = threading.Lock()
        self.shape = {side: int(serving[side]) for side in SIDES if side in serving}

    def to_input(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """One picture as the model takes it."""
        return np.ascontiguousarray(self.program.preprocess(image, **self.shape), np.float32)

    def items(self, file: Path, name: str) -> Iterator[Item]:
        yield Item(name, file)

    def item(self, content: bytes, sample_id: str = "") -> Item:
        return Item(sample_id, content)

    def encode(self, items: Sequence[Item]) -> Encoded:
        if len(alike := self.encode_alike(items)) > 1:
            raise ValueError("preprocess makes pictures of several shapes of them: encode_alike takes them apart")
        return alike[0]

    def encode_alike(self, items: Sequence[Item]) -> list[Encoded]:
        declared = self.input(self.serving).shape
        found: dict[tuple[int, ...], list[tuple[str, np.ndarray[Any, Any], tuple[int, int]]]] = {}
        errors: dict[str, str] = {}
        for item in items:
            try:
                if isinstance(item.value, Unreadable):
                    raise ValueError(item.value.reason)
                image = open_picture(item.value)
                # Decoding is ours and goes on beside it; the program's own code is never called twice at once.
                with self._calls:
                    prepared = self.to_input(image)
                if not _fits(prepared.shape, declared):
                    raise ValueError(f"preprocess made {prepared.shape} of it, the model takes {declared}; -1 is any")
            # Also what the model's own preprocess makes of a picture that it did not expect.
            except Exception as error:
                errors[item.sample_id] = str(error) or type(error).__name__
                continue
            found.setdefault(prepared.shape, []).append((item.sample_id, prepared, (image.height, image.width)))
        if len(found) <= 1:
            [alike] = found.values() or [[]]
            inputs = {"INPUT__0": np.stack([pixels for _, pixels, _ in alike])} if alike else {}
            sizes = tuple(size for _, _, size in alike)
            return [Encoded(tuple(item.sample_id for item in items), inputs, errors, sizes)]
        batches = [Encoded(tuple(errors), {}, errors)] if errors else []
        for alike in found.values():
            names, pixels, sizes = zip(*alike, strict=True)
            batches.append(Encoded(names, {"INPUT__0": np.stack(pixels)}, sizes=sizes))
        return batches

    @classmethod
    def input(cls, serving: Mapping[str, Any]) -> Tensor:
        """INPUT__0; any size where serving.json does not say it. Keras has the channels last."""
        channels, height, width = (int(serving.get(side, -1)) for side in SIDES)
        is_keras = serving.get("framework") == "TensorFlow"
        return Tensor("INPUT__0", "FP32", (height, width, channels) if is_keras else (channels, height, width))


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(side in (-1, own) for own, side in zip(shape, declared, strict=True))
