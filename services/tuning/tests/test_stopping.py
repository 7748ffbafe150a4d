"""When a trial has no hope, and when a study has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servicekit.times import utc_now
from studies_room import study_of
from tuning_service.domain.plan import MedianRule, Objective, Plan
from tuning_service.domain.space import Space
from tuning_service.domain.stopping import is_hopeless, reason_to_end
from tuning_service.domain.study import Counts

LOSS, ACCURACY = Objective("loss", maximize=False), Objective("accuracy", maximize=True)
Curve = Sequence[tuple[float, float]]


def curve(*values: float) -> Curve:
    """A value at each step, from 1 on."""
    return [(float(step), value) for step, value in enumerate(values, 1)]


def hopeless(own: Curve, others: Sequence[Curve], objective: Objective = LOSS, **rule: int) -> bool:
    return is_hopeless(MedianRule(**{"min_trials": 3, **rule}), objective, own, others)


# Losses that fall, as trainings' do: 1.0 at step 4, and 4.0 as the mean of what was until then.
FALLING = [curve(9.0, 4.0, 2.0, end) for end in (0.9, 1.0, 1.1)]


def test_it_is_compared_with_what_the_others_had_at_its_step() -> None:
    # Better than the means of the others (4.0) and than all their first values; worse than where they stood.
    assert hopeless(curve(3.0, 2.5, 2.4, 1.5), FALLING)
    assert not hopeless(curve(3.0, 2.5, 2.4, 0.95), FALLING)
    # As good as the median is good enough.
    assert not hopeless(curve(3.0, 2.5, 2.4, 1.0), FALLING)


def test_it_is_judged_by_its_best_value_and_they_by_their_newest() -> None:
    assert not hopeless(curve(3.0, 0.95, 5.0, 5.0), FALLING)
    # Each of these had 0.1 once: it is where they stood that counts.
    risen = [curve(0.1, 0.1, 0.1, end) for end in (0.9, 1.0, 1.1)]
    assert not hopeless(curve(3.0, 2.5, 2.4, 0.95), risen)
    assert hopeless(curve(3.0, 2.5, 2.4, 1.5), risen)


def test_an_early_step_is_compared_with_early_steps() -> None:
    assert not hopeless(curve(8.0), FALLING)
    assert hopeless(curve(9.5), FALLING)


def test_what_is_maximized_is_hopeless_below_the_median() -> None:
    others = [curve(0.1, 0.5, end) for end in (0.8, 0.9, 0.95)]
    assert hopeless(curve(0.2, 0.6, 0.7), others, ACCURACY)
    assert not hopeless(curve(0.2, 0.6, 0.92), others, ACCURACY)


def test_it_has_time_until_enough_is_known() -> None:
    bad = curve(9.0, 9.0, 9.0, 9.0)
    assert hopeless(bad, FALLING)
    assert not hopeless(bad, FALLING[:2])
    assert not hopeless(bad, FALLING, min_steps=5)
    assert not hopeless([], FALLING)
    # One that ended before that step, on a lower rung of Hyperband, tells nothing about it.
    assert not hopeless(bad, [*FALLING[:2], curve(0.5, 0.4)])


def test_steps_need_not_be_the_same_nor_in_order() -> None:
    others = [[(30.0, 1.0), (10.0, 4.0), (20.0, 2.0), (20.0, end)] for end in (2.1, 2.2, 2.3)]
    # At 25 they had what they wrote last of step 20, 2.2 in the middle.
    assert hopeless([(25.0, 2.25)], others)
    assert not hopeless([(25.0, 2.15)], others)
    # Nobody has a value so early.
    assert not hopeless([(5.0, 99.0)], others)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=3, max_size=9),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3),
)
def test_whoever_is_better_than_all_is_never_hopeless(others: list[list[float]], own: list[float]) -> None:
    least = min(value for other in others for value in other)
    curves = [curve(*values) for values in others]
    assert not hopeless(curve(*own[:-1], least), curves)
    # Of new trials that do what the finished ones did, at most every other one is.
    stopped = [hopeless(one[: len(own)], curves) for one in curves]
    assert sum(stopped) <= len(curves) / 2


@pytest.mark.parametrize(("parallel", "failures"), [(1, 20), (10, 20), (11, 22), (100, 200)])
def test_a_study_has_hope_until_so_many_have_failed(parallel: int, failures: int) -> None:
    plan = Plan(Space(()), (), "Random", {}, (LOSS,), parallel=parallel)

    def reason(failed: int, finished: int = 0) -> str:
        counts = Counts(trials=failed + finished, failed=failed, finished=finished)
        return reason_to_end(dataclasses.replace(study_of(), counts=counts), plan, utc_now())

    assert reason(failures - 1) == ""
    assert reason(failures) == f"the first {failures} trials failed, all of them"
    assert reason(failures, finished=1) == ""
