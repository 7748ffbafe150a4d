"""How weights begin: Caffe's fillers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from caffe_nets.schema import CaffeError, enum_word

FILLERS = ("constant", "uniform", "gaussian", "xavier", "msra", "bilinear", "positive_unitball")


def fill(shape: tuple[int, ...], filler: Any) -> Tensor:
    """A float32 tensor of `shape` as the FillerParameter `filler` says; CaffeError lists the known types."""
    weights = torch.empty(shape)
    kind = filler.type
    if kind == "constant":
        return weights.fill_(filler.value)
    if kind == "uniform":
        return weights.uniform_(filler.min, filler.max)
    if kind == "gaussian":
        weights.normal_(filler.mean, filler.std)
        if filler.sparse >= 0:
            # On average `sparse` inputs of each output are not zero.
            weights *= torch.empty(shape).bernoulli_(min(1.0, filler.sparse / shape[0]))
        return weights
    if kind == "xavier":
        bound = math.sqrt(3.0 / _fan(shape, filler))
        return weights.uniform_(-bound, bound)
    if kind == "msra":
        return weights.normal_(0.0, math.sqrt(2.0 / _fan(shape, filler)))
    if kind == "bilinear":
        return _bilinear(shape)
    if kind == "positive_unitball":
        rows = weights.uniform_(0.0, 1.0).flatten(1) if len(shape) > 1 else weights.uniform_(0.0, 1.0)[None]
        return (rows / rows.sum(1, keepdim=True)).reshape(shape)
    raise CaffeError(f"filler type {kind!r} is not known; known: {', '.join(FILLERS)}")


def _fan(shape: tuple[int, ...], filler: Any) -> float:
    count = math.prod(shape)
    fan_in, fan_out = count / shape[0], count / shape[1] if len(shape) > 1 else count
    norm = enum_word(filler, "variance_norm")
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[norm]


def _bilinear(shape: tuple[int, ...]) -> Tensor:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise CaffeError(f"filler type 'bilinear' needs square kernels, not the shape {list(shape)}")
    side = shape[3]
    factor = math.ceil(side / 2)
    centre = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - (torch.arange(side) / factor - centre).abs()
    return (line[:, None] * line[None, :]).expand(shape).clone()
