"""What a program may write, and no more of it is kept than studies need."""

from __future__ import annotations

import itertools
import json
import math

from tuning_service.domain.plan import Objective
from tuning_service.domain.results import MAX_CURVE_POINTS, MAX_STEPS, read_results

LOSS = (Objective("loss", False),)


def test_more_steps_than_are_read_are_named() -> None:
    found = read_results(json.dumps([{}] * (MAX_STEPS + 1)), LOSS)
    assert found.complaint == f"val_dict_list.json has {MAX_STEPS + 1} steps, at most {MAX_STEPS} are read"
    rows = [*[{}] * (MAX_STEPS - 1), {"loss": 0.5}]
    assert read_results(json.dumps(rows), LOSS).values == (0.5,)


def test_long_curves_keep_their_ends_and_the_best() -> None:
    rows = [{"step": step, "loss": math.sin(step)} for step in range(1, 10_001)]
    rows[1234]["loss"], rows[6543]["loss"] = -9.0, 9.0
    found = read_results(json.dumps(rows), LOSS)
    steps = [step for step, _ in found.curve]
    assert len(steps) in (MAX_CURVE_POINTS, MAX_CURVE_POINTS + 1, MAX_CURVE_POINTS + 2)
    assert (steps, steps[0], steps[-1]) == (sorted(set(steps)), 1.0, 10_000.0)
    assert (1235.0, -9.0) in found.curve
    assert (6544.0, 9.0) in found.curve
    assert all(rows[int(step) - 1]["loss"] == value for step, value in found.curve)
    # Spread over all of it.
    assert max(after - before for before, after in itertools.pairwise(steps)) < 20
    assert found.values == (math.sin(10_000),)


def test_curves_that_are_short_stay_as_they_are() -> None:
    rows = [{"step": step, "loss": float(step % 7)} for step in range(MAX_CURVE_POINTS)]
    assert [step for step, _ in read_results(json.dumps(rows), LOSS).curve] == list(map(float, range(MAX_CURVE_POINTS)))
