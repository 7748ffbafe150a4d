"""What an installed algorithm is told of trials, and what it may answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuning_service.domain.evaluation import Evaluation, TrialState
from tuning_service.domain.fields import Fields, shown
from tuning_service.domain.space import DataType, Dimension, Levels, Space, Steps, Value
from tuning_service.worker.plugin_host import MAX_ANSWER_BYTES

_TYPE_WORDS = {"integer": "INT", "float": "DOUBLE", "string": "STR"}
_TYPES = {DataType.INT: "a whole number", DataType.DOUBLE: "a finite number", DataType.STR: "a text"}
_TOLERANCE = 1e-9
# What a number takes in an answer at most, with what is written between two; and what answers shall take.
_NUMBER_BYTES, _BETWEEN_BYTES = 26, 4
_ANSWER_BYTES = MAX_ANSWER_BYTES * 3 // 4


def most_sets(space: Space) -> int:
    """How many sets of parameters can be asked for at once: as many as an answer can hold, whatever their values."""
    widths = [(one.name, _width(one)) for one in space.dimensions]
    widths += [(one.name, _written(one.value)) for one in space.fixed]
    set_bytes = sum(_written(name) + width + _BETWEEN_BYTES for name, width in widths)
    return max(1, _ANSWER_BYTES // max(1, set_bytes))


def _width(dimension: Dimension) -> int:
    if dimension.data_type is not DataType.STR or not isinstance(dimension, Levels):
        return _NUMBER_BYTES
    return max(map(_written, dimension.values), default=0)


def _written(value: Value) -> int:
    return len(json.dumps(value))


def hyper_parameters(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`hyperParams` as the user wrote them, their types in capitals."""
    found = []
    for one in Fields("", request).items("hyperParams"):
        word = str(one.get("dataType", ""))
        found.append({**one, "dataType": _TYPE_WORDS.get(word.lower(), word.upper())})
    return found


def results(trials: Sequence[Evaluation], *, maximize: bool) -> list[dict[str, Any]]:
    """`last_exp_results`: a dict a trial, in the order in which its parameters were suggested.

    `id` (its number), `state` (FINISHED or FAILED), its parameters as `hyperparams`, `hyper_params` and `hyperParams`,
    the objective's value as the program gave it as `score`, `metricVal` and `metric`, and `loss`, which is the less the
    better; None where there is none.
    """
    return [_result(trial, maximize) for trial in sorted(trials, key=lambda trial: trial.number)]


def _result(trial: Evaluation, maximize: bool) -> dict[str, Any]:
    loss = trial.losses[0] if trial.state is TrialState.FINISHED and trial.losses else None
    if loss is not None and not math.isfinite(loss):
        loss = None
    score = -loss if loss is not None and maximize else loss
    values = dict(trial.values or {})
    return {
        "id": trial.number,
        "state": str(trial.state),
        **{name: dict(values) for name in ("hyperparams", "hyper_params", "hyperParams")},
        **dict.fromkeys(("score", "metricVal", "metric"), score),
        "loss": loss,
    }


def checked_values(space: Space, sets: Any, count: int) -> list[dict[str, Value]]:
    """The first `count` sets of parameters that `search` returned, as programs get them; ValueError for what is wrong.

    Each has all parameters that are searched, of their types. Numbers of a range lie between its ends, on its steps or
    not: whoever writes an algorithm may know better. Of a list it is one of its values. Fixed parameters may be there.
    """
    if not isinstance(sets, list):
        raise ValueError(f"search() returned {type(sets).__name__}, not a list of {{parameter: value}}")
    dimensions = {dimension.name: dimension for dimension in space.dimensions}
    fixed = {parameter.name: parameter.value for parameter in space.fixed}
    return [_checked(dimensions, fixed, index, one) for index, one in enumerate(sets[:count])]


def _checked(dimensions: Mapping[str, Dimension], fixed: Mapping[str, Value], index: int, one: Any) -> dict[str, Value]:
    if not isinstance(one, dict):
        raise ValueError(f"search() returned a list whose item {index} is no dict but {type(one).__name__}")
    for name, value in one.items():
        if name not in dimensions and name not in fixed:
            known = ", ".join([*dimensions, *fixed])
            raise ValueError(f"search() returned a parameter {shown(name)!r}; there are {known}")
        if name in fixed and str(value) != str(fixed[name]):
            raise ValueError(f"search() returned {shown(value)} for {name}, which is always {shown(fixed[name])}")
    for name in dimensions:
        if name not in one:
            raise ValueError(f"search() returned no value for {name} in item {index}")
    return {name: _value(dimension, one[name]) for name, dimension in dimensions.items()}


def _value(dimension: Dimension, given: Any) -> Value:
    value = _typed(dimension.data_type, given)
    if value is None:
        allowed = _TYPES[dimension.data_type]
        raise ValueError(f"search() returned {shown(given)!r} for {dimension.name}, which is to be {allowed}")
    ends = _ends(dimension)
    if ends is None:
        coordinate = dimension.coordinate(value)
        if coordinate is None:
            raise ValueError(f"search() returned {shown(given)!r} for {dimension.name}, which is none of its values")
        return dimension.value(coordinate)
    low, high = ends
    margin = _TOLERANCE * max(abs(low), abs(high))
    assert not isinstance(value, str)
    if not low - margin <= value <= high + margin:
        text = f"search() returned {shown(given)} for {dimension.name}, which lies from {low:g} to {high:g}"
        raise ValueError(text)
    return value if dimension.data_type is DataType.INT else min(high, max(low, value))


def _typed(data_type: DataType, given: Any) -> Value | None:
    if data_type is DataType.STR:
        return given if isinstance(given, str) else None
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        number = float(given)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    if data_type is DataType.DOUBLE:
        return number
    return int(given) if number.is_integer() else None


def _ends(dimension: Dimension) -> tuple[float, float] | None:
    """Of a range; None for a list of values."""
    if dimension.size is None:
        ends = dimension.value(0), dimension.value(1)
    elif isinstance(dimension, Levels) and isinstance(dimension.values, Steps):
        ends = dimension.values[0], dimension.values[len(dimension.values) - 1]
    else:
        return None
    low, high = sorted(map(float, ends))
    return low, high
