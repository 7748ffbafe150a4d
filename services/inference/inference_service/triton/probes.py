"""What a model is asked before it is called ready, as a parameter of its Triton configuration.

`{"inputs": {name: [datatype, shape, value]}, "item": base64 text, "probabilities": bool}`. Tensors of these shapes,
with the value in every place, are sent, or else the item as ITEM. Every output must be finite, the rows of OUTPUT__0
add up to 1 where they are probabilities, and RESULT holds a result that is no error. Not the shapes but the values
tell: a server that mistakes its numpy answers zeros of the right shape.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from dlmesh_sdk import served

PARAMETER = "probe"
# Where the model takes any number.
ANY = 32
DATATYPES = {"FP32": "float32", "FP64": "float64", "INT64": "int64"}
# Of all tensors together, which lie in the memory of the service that asks.
MAX_NUMBERS = 16 * 1024**2


def probe_of(facts: served.Facts) -> str:
    """The parameter's text, for a model with tensors."""
    inputs = {
        # Zeros, but what may be of any length (tokens of a text) has zeros beyond its end.
        tensor.name: [tensor.datatype, [1, *(_side(side, tensor) for side in tensor.shape)], int(tensor.is_ragged)]
        for tensor in facts.inputs
    }
    return json.dumps({"inputs": inputs, "probabilities": facts.probabilities})


def probe_with_item(item: bytes) -> str:
    """The parameter's text, for a model that has ITEM alone."""
    return json.dumps({"inputs": {}, "item": base64.b64encode(item).decode(), "probabilities": False})


def former_probe(config: Any) -> str:
    """The text for an entry of a release that wrote none: a classifier of pictures. `config` is Triton's message."""
    picture = config.input[0]
    return json.dumps({"inputs": {picture.name: ["FP32", [1, *picture.dims], 0]}, "probabilities": True})


def probe_arrays(text: str) -> dict[str, np.ndarray[Any, Any]]:
    """What to send, by input name; ValueError for what is too much."""
    # Not at the top: the service that asks has no use for numpy before.
    import numpy as np

    probe = json.loads(text)
    if "item" in probe:
        return {"ITEM": np.array([[base64.b64decode(probe["item"])]], np.object_)}
    numbers = sum(math.prod(shape) for _, shape, _ in probe["inputs"].values())
    if numbers > MAX_NUMBERS:
        # Of an entry of a former release: the export refuses such a model now.
        raise ValueError(f"an input of it has {numbers} numbers, allowed are {MAX_NUMBERS}")
    return {
        name: np.full(shape, value, DATATYPES[datatype]) for name, (datatype, shape, value) in probe["inputs"].items()
    }


def probe_complaint(text: str, outputs: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """What is wrong with the answer; empty when nothing is."""
    import numpy as np

    for name, values in outputs.items():
        wrong = _result_complaint(values) if values.dtype == np.object_ else not np.isfinite(values).all()
        if wrong:
            return f"its {name} for an empty input is {wrong if isinstance(wrong, str) else _shown(values)}"
    if not outputs:
        return "it answers nothing to an empty input"
    if json.loads(text)["probabilities"] and (np.abs(outputs["OUTPUT__0"].sum(-1) - 1.0) > 1e-3).any():
        return f"its probabilities for an empty input are {_shown(outputs['OUTPUT__0'])}"
    return ""


def _side(side: int, tensor: served.Tensor) -> int:
    if side >= 0:
        return side
    return 1 if tensor.is_ragged else ANY


def _result_complaint(values: np.ndarray[Any, Any]) -> str:
    try:
        for value in values.ravel():
            result = json.loads(value)
            if not isinstance(result, dict) or "error" in result:
                return str(result)[:500]
    except ValueError as error:
        return f"no JSON: {error}"
    return "" if values.size else "empty"


def _shown(values: np.ndarray[Any, Any]) -> str:
    return f"{values.ravel()[:5].tolist()}..."
