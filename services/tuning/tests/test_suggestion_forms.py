"""What services and the processes that think tell each other arrives as it was sent."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_service.domain.evaluation import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.domain.problem_form import (
    answer_form,
    evaluation_form,
    problem_form,
    read_answer,
    read_evaluation,
    read_problem,
)
from tuning_service.domain.space import Choice, Continuous, DataType, Fixed, Levels, Space, Steps

names = st.text(min_size=1, max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)
coordinates = st.one_of(st.floats(0, 1), st.integers(0, 2**60))
notes = st.dictionaries(names, st.one_of(st.integers(), st.text(), st.none(), numbers))
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-1000, max_value=1000)
dimensions = st.one_of(
    st.builds(Continuous, names, numbers, numbers, st.none() | numbers),
    st.builds(Choice, names, st.just(DataType.STR), st.tuples(st.text(), st.text())),
    st.builds(Levels, names, st.sampled_from([DataType.INT]), st.tuples(st.integers(), st.integers())),
    st.builds(Levels, names, st.sampled_from([DataType.DOUBLE]), st.tuples(numbers, numbers)),
    st.builds(
        lambda name, data_type, low, size, base: Levels(
            name, data_type, Steps(low, Decimal("0.002"), size, data_type, base)
        ),
        names,
        st.sampled_from([DataType.INT, DataType.DOUBLE]),
        decimals,
        st.integers(2, 2**40),
        st.none() | st.just(Decimal(10)),
    ),
)
fixed = st.builds(Fixed, names, st.sampled_from(DataType), st.one_of(st.integers(), numbers, st.text()), st.booleans())
problems = st.builds(
    Problem,
    st.builds(Space, st.lists(dimensions, max_size=4).map(tuple), st.lists(fixed, max_size=2).map(tuple)),
    notes,
    st.integers(0, 2**63 - 1),
    st.integers(1, 8),
    st.none() | st.integers(1, 10**6),
    st.integers(1, 1000),
)
evaluations = st.builds(
    Evaluation,
    st.integers(1, 10**6),
    st.lists(coordinates).map(tuple),
    st.sampled_from(TrialState),
    st.none() | st.lists(st.floats(allow_nan=False)).map(tuple),
    notes,
)


def sent(form: Any) -> Any:
    return json.loads(json.dumps(form))


@settings(deadline=None)
@given(problems)
def test_problems(problem: Problem) -> None:
    arrived = read_problem(sent(problem_form(problem)))
    assert arrived == problem
    # 1 and 1.0 are equal, and not the same to a program.
    assert repr(arrived) == repr(problem)


@given(evaluations)
def test_trials(trial: Evaluation) -> None:
    arrived = read_evaluation(sent(evaluation_form(trial)))
    assert arrived == trial
    assert repr(arrived) == repr(trial)


def test_losses_that_are_no_numbers() -> None:
    trial = Evaluation(1, (), TrialState.FINISHED, (math.nan, math.inf))
    losses = read_evaluation(sent(evaluation_form(trial))).losses
    assert losses is not None
    assert math.isnan(losses[0])
    assert losses[1] == math.inf


@given(st.lists(st.builds(Suggestion, st.lists(coordinates).map(tuple), notes)), st.booleans())
def test_answers(suggestions: list[Suggestion], is_exhausted: bool) -> None:
    answer = Answer(suggestions, is_exhausted)
    arrived = read_answer(sent(answer_form(answer)))
    assert arrived == answer
    assert repr(arrived) == repr(answer)
