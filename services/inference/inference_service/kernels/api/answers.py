"""What kernels answer, taken apart where it says a classification, a detection or a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

# The names of a prediction's results; those of one sample are alike everywhere.
_SAMPLES = ("classificationResults", "detResults")
_COMPARISONS = "comparisonResults"
# To take more apart would hold everybody else up.
MAX_CHARACTERS = 256 * 1024
_Object = dict[str, Any]


def take_apart(output: str) -> list[_Object] | None:
    """The results in `output`, each as PredictResult of the contract with nothing but its fields; None when it is
    something else, or longer than MAX_CHARACTERS.

    Read are a PredictResult, and a list of them, in JSON: `{"type": ..., "classificationResults" | "detResults":
    [{"sampleId", "results": [{"label", "prob", "bbox"}]}], "comparisonResults": [{"sampleId1", "sampleId2",
    "distance", "isSimilar"}]}`.
    """
    if len(output) > MAX_CHARACTERS:
        return None
    try:
        value = json.loads(output)
        results = [_result(one) for one in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return results or None


def _result(value: Any) -> _Object:
    """ValueError when it is none."""
    given = _object(value)
    result: _Object = {}
    for name in _SAMPLES:
        if given.get(name) is not None:
            result[name] = [_sample(one) for one in _list(given[name])]
    if given.get(_COMPARISONS) is not None:
        result[_COMPARISONS] = [_comparison(one) for one in _list(given[_COMPARISONS])]
    if not result:
        raise ValueError("no results")
    return {**_texts(given, "type"), **result}


def _sample(value: Any) -> _Object:
    given = _object(value)
    scores = [_score(one) for one in _list(given.get("results", []))]
    return {**_texts(given, "sampleId", "inputPath"), **_truths(given, "isImage"), "results": scores}


def _score(value: Any) -> _Object:
    given = _object(value)
    label, box = given.get("label"), given.get("bbox")
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise ValueError("a label")
    score: _Object = {"label": _sendable(str(label)), "prob": _number(given.get("prob"))}
    if box is not None:
        score["bbox"] = _sendable(box) if isinstance(box, str) else json.dumps([_number(side) for side in _list(box)])
    return score


def _comparison(value: Any) -> _Object:
    given = _object(value)
    return {
        **_texts(given, "sampleId1", "sampleId2", "inputPath"),
        **_truths(given, "isImage", "isSimilar"),
        "distance": _number(given.get("distance")),
    }


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def _number(value: Any) -> float:
    # Original programs write numbers as texts, too.
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError("a number")
    return number


def _sendable(text: str) -> str:
    # JSON can name half a character; ValueError for one.
    text.encode()
    return text


def _texts(given: Mapping[str, Any], *names: str) -> _Object:
    return {name: _sendable(text) for name, text in _of_kind(given, str, names).items()}


def _truths(given: Mapping[str, Any], *names: str) -> _Object:
    return _of_kind(given, bool, names)


def _of_kind(given: Mapping[str, Any], kind: type, names: tuple[str, ...]) -> _Object:
    found = {name: given[name] for name in names if given.get(name) is not None}
    if not all(isinstance(one, kind) for one in found.values()):
        raise ValueError(f"{kind.__name__} values")
    return found
