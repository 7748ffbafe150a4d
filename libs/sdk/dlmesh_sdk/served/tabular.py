"""Rows of numbers and texts; the program has `build_model(numbers, texts, outputs)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlmesh_sdk.served.base import Tensor
from dlmesh_sdk.served.rows import ServedRows


class ServedTabular(ServedRows):
    """`NUMBERS` FP32 [2 * columns of numbers] and `TEXTS` INT64 [columns of text], as TableDataset makes them; the one
    of which there are no columns is left out."""

    task = "tabular"

    @classmethod
    def make_encoding(cls, content: Mapping[str, Any]) -> Any:
        from dlmesh_sdk.table_datasets import TableEncoding

        return TableEncoding.from_json(content)

    @classmethod
    def columns_of(cls, encoding: Mapping[str, Any]) -> list[str]:
        return [str(column[0]) for kind in ("numbers", "texts") for column in encoding[kind]]

    @classmethod
    def inputs_of(cls, encoding: Mapping[str, Any]) -> tuple[Tensor, ...]:
        numbers, texts = len(encoding["numbers"]), len(encoding["texts"])
        tensors = (Tensor("NUMBERS", "FP32", (2 * numbers,)), Tensor("TEXTS", "INT64", (texts,)))
        return tuple(tensor for tensor in tensors if tensor.shape != (0,))

    def stack(self, samples: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
        numbers, texts = (np.stack([np.asarray(part) for part in parts]) for parts in zip(*samples, strict=True))
        return {name: part for name, part in (("NUMBERS", numbers), ("TEXTS", texts)) if part.shape[1]}

    def check(self, inputs: Mapping[str, Any]) -> None:
        for column, (name, values) in enumerate(self.encoding.texts):
            indices = inputs["TEXTS"][:, column]
            if int(indices.min()) < 0 or int(indices.max()) > len(values):
                raise ValueError(f"TEXTS: allowed for column {name!r} are numbers from 0 to {len(values)}")

    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        first = next(iter(inputs.values()))
        nothing = {
            "NUMBERS": torch.zeros(len(first), 0, device=first.device),
            "TEXTS": torch.zeros(len(first), 0, dtype=torch.int64, device=first.device),
        }
        return self.answer(module([inputs.get(name, nothing[name]) for name in ("NUMBERS", "TEXTS")]))
