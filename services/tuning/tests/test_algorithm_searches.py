"""Random, Tpe, Bayesian and Nevergrad, whatever becomes of their trials."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches_room import GRID, MIXED, Study, bowl, problem_of, unit
from tuning_service.algorithms.base import Evaluation, TrialState
from tuning_service.algorithms.registry import make_algorithm
from tuning_service.domain.space import Choice, Continuous, DataType, Dimension, Levels, Place, Space, Steps

ALL = ("Random", "Tpe", "Bayesian", "Nevergrad")
MODELS = ("Tpe", "Bayesian")
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name == "Nevergrad" else name for name in ALL]


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([MIXED, GRID]), st.sampled_from([1, 2]))
def test_made_anew_it_answers_as_the_old_one(name: str, seed: int, space: Space, objectives: int) -> None:
    luck = random.Random(seed)
    if name == "Nevergrad":
        objectives = 1

    def losses(place: Place) -> Sequence[float] | None:
        if luck.random() < 0.2:
            return None if luck.random() < 0.5 else [math.inf] * objectives
        return [luck.gauss(0, 1) + sum(unit(place, space)) for _ in range(objectives)]

    problem = problem_of(name, space, seed=seed, objectives=objectives)
    Study(problem, name, losses, seed=seed, check_restarts=True).run(16)


@pytest.mark.parametrize("name", ALL)
def test_asked_twice_it_answers_twice_the_same(name: str) -> None:
    """A crash may come between the answer and its being written."""
    study = Study(problem_of(name), name).run(12)
    asked = study.algorithm.ask(study.trials, 3)
    assert study.algorithm.ask(study.trials, 3) == asked
    assert study.algorithm.ask(study.trials, 1).suggestions == asked.suggestions[:1]
    # What was written may be something else: a point that its user knows.
    known = [*study.trials, Evaluation(len(study.trials) + 1, (0.5, 0.5, 50, 1), TrialState.FINISHED, (0.0,))]
    assert study.algorithm.ask(known, 2) == make_algorithm(name, study.problem).ask(known, 2)
    assert study.algorithm.ask(known[:6], 1) == make_algorithm(name, study.problem).ask(known[:6], 1)


@pytest.mark.parametrize("name", ALL)
def test_another_seed_another_search(name: str) -> None:
    one, other = (Study(problem_of(name, seed=seed), name).run(8).places for seed in (1, 2))
    assert not set(one) & set(other)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("space", [GRID, Space((Levels("width", DataType.INT, range(24)),))])
def test_a_finite_space_is_tried_once_and_to_its_end(name: str, space: Space) -> None:
    # Fewer candidates than places: most that are thought of were tried.
    few = {"Random": {}, "Tpe": {"EICandidate": "6"}, "Bayesian": {"CubeSize": "6"}}.get(name)
    study = Study(problem_of(name, space, given=few), name, lambda place: [sum(unit(place, space))]).run(200)
    assert study.is_exhausted
    assert len(study.trials) == space.size
    assert len({space.key(place) for place in study.places}) == space.size


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "dimensions", [(), (Levels("width", DataType.INT, [8]),), (Choice("solver", DataType.STR, ["Adam"]),)]
)
def test_a_space_of_one_point_is_tried_once(name: str, dimensions: Sequence[Dimension]) -> None:
    study = Study(problem_of(name, Space(dimensions)), name, lambda place: [1.0]).run(5)
    assert study.is_exhausted
    assert study.places == [(0,) * len(dimensions)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "space",
    [
        Space([Continuous(f"x{index}", 0.0, 1.0) for index in range(50)]),
        Space((Levels("n", DataType.INT, Steps(Decimal(0), Decimal(1), 2_000_000_000, DataType.INT)),)),
        Space((Choice("name", DataType.STR, [str(index) for index in range(500)]), Continuous("x", 0.0, 1.0))),
        Space([Choice(f"c{index}", DataType.INT, range(3)) for index in range(45)]),
    ],
    ids=["50 numbers", "two billion levels", "choice of 500", "45 choices"],
)
def test_spaces_of_any_size(name: str, space: Space) -> None:
    study = Study(problem_of(name, space), name, lambda place: [sum(unit(place, space))]).run(16)
    assert len({space.key(place) for place in study.places}) == 16
    for place in study.places:
        for coordinate, dimension in zip(place, space.dimensions, strict=True):
            assert 0 <= coordinate <= (1.0 if dimension.size is None else dimension.size - 1)
            assert isinstance(coordinate, float if dimension.size is None else int)


def test_random_search_draws_every_value_alike() -> None:
    space = Space((Levels("width", DataType.INT, range(4)), Continuous("rate", 0.0, 1.0)))
    suggestions = make_algorithm("Random", problem_of("Random", space)).ask([], 4000).suggestions
    places = [suggestion.place for suggestion in suggestions]
    counts = Counter(place[0] for place in places)
    # Six deviations of a binomial distribution.
    assert all(abs(counts[value] - 1000) < 6 * math.sqrt(1000 * 0.75) for value in range(4))
    assert abs(float(np.mean([place[1] for place in places])) - 0.5) < 6 / math.sqrt(12 * 4000)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_find_more_than_chance(name: str) -> None:
    seeds = range(3)
    found = [Study(problem_of(name, seed=seed), name, seed=seed).run(30).best for seed in seeds]
    drawn = [Study(problem_of("Random", seed=seed), "Random", seed=seed).run(30).best for seed in seeds]
    assert max(found) < min(drawn)


@pytest.mark.parametrize("name", MODELS)
def test_what_runs_at_the_same_time_differs(name: str) -> None:
    space = Space((Continuous("x", 0.0, 1.0), Continuous("y", 0.0, 1.0)))
    study = Study(problem_of(name, space), name, lambda place: [(place[0] - 0.4) ** 2 + (place[1] - 0.7) ** 2])
    study.run(30)
    for index, trial in enumerate(study.trials):
        if trial.state is TrialState.PENDING:
            study.end(index)
    together = [suggestion.place for suggestion in study.algorithm.ask(study.trials, 8).suggestions]
    nearest = min(
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for index, one in enumerate(together)
        for other in together[:index]
    )
    assert nearest > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_what_runs_keeps_others_away(name: str) -> None:
    space = Space((Continuous("x", 0.0, 1.0), Continuous("y", 0.0, 1.0)))
    study = Study(problem_of(name, space), name, lambda place: [(place[0] - 0.4) ** 2 + (place[1] - 0.7) ** 2])
    study.run(14)
    ended = [trial for trial in study.trials if trial.losses]

    def asked_beside(places: Sequence[Place]) -> Place:
        history = [replace(trial, number=number) for number, trial in enumerate(ended, 1)]
        history += [Evaluation(len(ended) + at, place, TrialState.PENDING) for at, place in enumerate(places, 1)]
        [suggestion] = make_algorithm(name, study.problem).ask(history, 1).suggestions
        return suggestion.place

    x, y = asked_beside([(0.0, 0.01 * at) for at in range(5)])
    steps = [(-0.02, 0.0), (0.02, 0.0), (0.0, -0.02), (0.0, 0.02), (0.002, 0.002)]
    other = asked_beside([(x + right, y + up) for right, up in steps])
    assert math.dist(other, (x, y)) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("failure", [None, [math.inf], [math.nan]], ids=["no loss", "infinite", "no number"])
def test_where_trials_fail_less_is_tried(name: str, failure: Sequence[float] | None) -> None:
    def losses(place: Place) -> Sequence[float] | None:
        return failure if unit(place)[1] > 0.5 else bowl(place)

    later = Study(problem_of(name), name, losses).run(60).places[20:]
    # The best place of all lies where they fail: models that leave failures out try little else.
    assert sum(unit(place)[1] > 0.5 for place in later) < 20


@pytest.mark.parametrize("name", ALL)
def test_a_study_of_failures_goes_on(name: str) -> None:
    places = Study(problem_of(name), name, lambda place: None).run(20).places
    assert len(set(places)) == 20


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("loss", [0.0, 1e300, -1e300, 1e-300])
def test_losses_of_any_size_and_all_the_same(name: str, loss: float) -> None:
    assert len(set(Study(problem_of(name), name, lambda place: [loss]).run(16).places)) == 16


@pytest.mark.parametrize("name", [*MODELS, "Nevergrad"])
def test_losses_over_many_decades(name: str) -> None:
    assert Study(problem_of(name), name, lambda place: [math.exp(200 * bowl(place)[0])]).run(30).best < math.exp(60)


@pytest.mark.parametrize("name", MODELS)
def test_warm_up_reaches_every_part_of_every_dimension(name: str) -> None:
    setting = {"Tpe": "WarmUp", "Bayesian": "InitPoints"}[name]
    study = Study(problem_of(name, given={setting: "10"}), name).run(10)
    for column in (0, 1):
        assert sorted(int(place[column] * 10) for place in study.places) == list(range(10))
    assert sorted(int(place[2]) // 10 for place in study.places) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_several_objectives_are_weighed_against_each_other(name: str) -> None:
    """Both ends of the front and its middle are tried more than by chance."""

    def losses(place: Place) -> Sequence[float]:
        rate, momentum, width, solver = unit(place)
        aside = (width - 0.5) ** 2 + 0.3 * solver + (momentum - 0.6) ** 2
        return [rate**2 + aside, (rate - 1) ** 2 + aside]

    def area(name: str) -> float:
        """What lies between the front and (1, 1)."""
        study = Study(problem_of(name, objectives=2), name, losses).run(50)
        ended = sorted(trial.losses for trial in study.trials if trial.losses)
        found, top = 0.0, 1.0
        for first, second in ended:
            if first < 1.0 and second < top:
                found, top = found + (1.0 - first) * (top - second), second
        return found

    assert area(name) > area("Random")


@pytest.mark.parametrize("name", ALL)
def test_settings_reach_the_search(name: str) -> None:
    changed: Mapping[str, Any] = {
        "Random": {},
        "Tpe": {"EICandidate": "2", "GoodRatio": "0.9", "GoodMax": "1"},
        "Bayesian": {"CubeSize": "7", "Noiseless": "false"},
        "Nevergrad": {"Optimizer": "CMA"},
    }[name]
    history = Study(problem_of("Random"), "Random", workers=1).run(40).trials
    usual = make_algorithm(name, problem_of(name)).ask(history, 1)
    for setting, value in changed.items():
        assert make_algorithm(name, problem_of(name, given={setting: value})).ask(history, 1) != usual, setting
