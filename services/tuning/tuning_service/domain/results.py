"""What a trial's program wrote as its results, `val_dict_list.json`, read without trusting any of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning_service.domain.plan import Objective

# Also what is read while a program runs is read by a service that others wait for.
MAX_STEPS = 100_000
MAX_CURVE_POINTS = 1000
MAX_METRICS = 100
MAX_NAME = 256
_STEPS = ("step", "steps", "iteration", "epoch")


@dataclass(frozen=True)
class MetricRange:
    """A metric over the steps of a trial."""

    minimum: float
    maximum: float
    latest: float

    def with_value(self, value: float) -> MetricRange:
        """Extended by a later value."""
        return MetricRange(min(self.minimum, value), max(self.maximum, value), value)


@dataclass(frozen=True)
class Results:
    """What could be read. `values` are the newest finite value of each objective, empty when one of them has none:
    then `complaint` says why. `curve` is the first objective over the steps: at most MAX_CURVE_POINTS, its lowest and
    highest not counted."""

    values: tuple[float, ...] = ()
    metrics: Mapping[str, MetricRange] | None = None
    curve: Sequence[tuple[float, float]] = ()
    complaint: str = ""


def read_results(text: str, objectives: Sequence[Objective]) -> Results:
    """The results in `text`, a JSON list of objects with a step and metrics; numbers may be text. It may take a second:
    not for an event loop."""
    if not text.strip():
        return Results(complaint="the program wrote no val_dict_list.json into $RESULT_DIR")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Results(complaint=f"val_dict_list.json is no JSON: {str(error)[:200]}")
    if isinstance(rows, dict):
        rows = [rows]
    if isinstance(rows, list) and len(rows) > MAX_STEPS:
        return Results(complaint=f"val_dict_list.json has {len(rows)} steps, at most {MAX_STEPS} are read")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return Results(complaint='val_dict_list.json is no list of objects such as {"step": 1, "loss": 0.5}')
    metrics: dict[str, MetricRange] = {}
    curve: list[tuple[float, float]] = []
    for index, row in enumerate(rows):
        step = next((number for name in _STEPS if (number := _number(row.get(name))) is not None), float(index + 1))
        for name, given in row.items():
            value = _number(given)
            # Programs may call a metric anything; databases and answers hold what can be printed.
            if value is None or name in _STEPS[:2] or len(name) > MAX_NAME or not name.isprintable():
                continue
            if name in metrics:
                metrics[name] = metrics[name].with_value(value)
            elif len(metrics) < MAX_METRICS or name in {objective.metric for objective in objectives}:
                metrics[name] = MetricRange(value, value, value)
            if name == objectives[0].metric:
                curve.append((step, value))
    curve = _thinned(curve)
    for objective in objectives:
        if objective.metric not in metrics:
            return Results((), metrics, curve, _missing(objective.metric, rows, metrics))
        if _number(_newest(rows, objective.metric)) is None:
            # A loss that is no number any more is a failure, however good it was before.
            newest = json.dumps(_newest(rows, objective.metric))[:50]
            return Results((), metrics, curve, f"the newest {objective.metric} in val_dict_list.json is {newest}")
    return Results(tuple(metrics[objective.metric].latest for objective in objectives), metrics, curve)


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS of a curve, the first and the last among them, and its lowest and highest."""
    last = len(curve) - 1
    if last < MAX_CURVE_POINTS:
        return curve
    kept = {round(index * last / (MAX_CURVE_POINTS - 1)) for index in range(MAX_CURVE_POINTS)}
    kept |= {find(range(last + 1), key=lambda index: curve[index][1]) for find in (min, max)}
    return [curve[index] for index in sorted(kept)]


def _newest(rows: Sequence[Mapping[str, Any]], metric: str) -> Any:
    return next(row[metric] for row in reversed(rows) if metric in row)


def _missing(metric: str, rows: Sequence[Any], metrics: Mapping[str, MetricRange]) -> str:
    if not rows:
        return "val_dict_list.json holds an empty list"
    if any(metric in row for row in rows):
        return f"val_dict_list.json has no finite number as {metric}"
    known = ", ".join(sorted(metrics)[:10]) or "none"
    return f"val_dict_list.json has no metric {metric}; those it has: {known}"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
