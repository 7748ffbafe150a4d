"""Tasks by their names in serving.json, and the models that are served for them."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmesh_sdk.served.base import Facts, Served, Tensor
from dlmesh_sdk.served.program import load_program

# Of one sample: a picture of 3 * 2300 * 2300. Whoever serves the model has some of them in memory at a time.
MAX_SAMPLE_BYTES = 64 * 1024**2
NUMBER_BYTES = {"FP32": 4, "FP64": 8, "INT64": 8}

TASKS = {
    "classification": "dlmesh_sdk.served.classification:ServedClassification",
    "detection": "dlmesh_sdk.served.detection:ServedDetection",
    "vector": "dlmesh_sdk.served.vector:ServedVector",
    "comparison": "dlmesh_sdk.served.comparison:ServedComparison",
    "tabular": "dlmesh_sdk.served.tabular:ServedTabular",
    "text": "dlmesh_sdk.served.text:ServedText",
}


def load(bundle: str | Path) -> Served:
    """The model of a bundle, its program imported; ValueError or what the program raises when it cannot be."""
    folder = Path(bundle)
    serving = json.loads((folder / "serving.json").read_text(encoding="utf-8"))
    return make(serving, load_program(folder))


def make(serving: Mapping[str, Any], program: Any) -> Served:
    """The model of a serving.json and a program: a module, or whatever has its functions."""
    served: Served = task_of(serving)(serving, program)
    return served


def describe(serving: Mapping[str, Any]) -> Facts:
    """The task and the tensors; ValueError says what is missing or wrong."""
    try:
        if missing := lacks(serving):
            raise ValueError(f"it has no {', '.join(missing)}")
        facts: Facts = task_of(serving).facts(serving)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(repr(error)) from error
    if any(side == 0 or side < -1 for tensor in facts.inputs + facts.outputs for side in tensor.shape):
        raise ValueError("it names no labels or an empty input")
    for kind, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        if (size := sum(map(_least_bytes, tensors))) > MAX_SAMPLE_BYTES:
            raise ValueError(f"the {kind} of a sample have {size} bytes, allowed are {MAX_SAMPLE_BYTES}")
    return facts


def _least_bytes(tensor: Tensor) -> int:
    return math.prod(max(side, 1) for side in tensor.shape) * NUMBER_BYTES[tensor.datatype]


def lacks(serving: Mapping[str, Any]) -> list[str]:
    """Which fields that its task needs serving.json does not have."""
    return [name for name in task_of(serving).needs if name not in serving]


def task_of(serving: Mapping[str, Any]) -> type[Served]:
    """The class of its task; ValueError lists the known tasks."""
    name = str(serving.get("task") or _guessed(serving))
    if name not in TASKS:
        raise ValueError(f"task: {name!r} is not known; allowed: {', '.join(TASKS)}")
    module, _, kind = TASKS[name].partition(":")
    task: type[Served] = getattr(importlib.import_module(module), kind)
    return task


def _guessed(serving: Mapping[str, Any]) -> str:
    """Of trainings from before serving.json named its task."""
    encoding = serving.get("encoding")
    if isinstance(encoding, Mapping):
        return "text" if "words" in encoding else "tabular"
    if "length" in serving:
        return "vector"
    is_detection = "labels" in serving and not {"channels", "height", "width"} & serving.keys()
    return "detection" if is_detection and len(serving["labels"]) else "classification"
