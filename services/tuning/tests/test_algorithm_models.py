"""What models of the loss are made of."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from tuning_service.algorithms.base import Evaluation, TrialState
from tuning_service.algorithms.bayesian import best_and_newest, normal
from tuning_service.algorithms.density import Density
from tuning_service.algorithms.gaussian_process import GaussianProcess, Priors
from tuning_service.algorithms.history import Codec, Floats, History, Untried
from tuning_service.algorithms.improvement import log_improvement, log_improvement_slopes
from tuning_service.algorithms.model_search import best_design
from tuning_service.algorithms.pareto import best_first, is_front, room
from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Space

SPACE = Space(
    (
        Continuous("rate", -5.0, 0.0, 10.0),
        Levels("width", DataType.INT, range(5)),
        Choice("solver", DataType.STR, ("Adam", "SGD", "Lion")),
    )
)
IS_CHOICE = np.array([False, False, False, True])


def slopes_of(function: Callable[[Floats], float], point: Floats) -> Floats:
    steps = 1e-6 * np.eye(len(point))
    return np.array([(function(point + step) - function(point - step)) / 2e-6 for step in steps])


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), max_size=4), st.integers(0, 2**31))
def test_what_is_untried_is_found_by_its_rank(sizes: list[int], seed: int) -> None:
    space = Space([Levels(f"d{index}", DataType.INT, range(size)) for index, size in enumerate(sizes)])
    untried, luck = Untried(space), random.Random(seed)
    places = [untried.nth(rank) for rank in range(space.size or 0)]
    assert len(set(places)) == space.size
    tried = luck.sample(places, luck.randint(0, len(places)))
    for place in tried:
        untried.add(place)
    left = [place for place in places if place not in tried]
    assert untried.left == len(left)
    assert [untried.nth(rank) for rank in range(len(left))] == left
    assert [place for place in places if place in untried] == left
    assert untried.draw(luck) in left if left else untried.draw(luck) is None
    for place in tried:
        untried.remove(place)
    assert [untried.nth(rank) for rank in range(len(places))] == places


@given(st.floats(0, 1), st.integers(0, 4), st.integers(0, 2))
def test_places_survive_their_way_through_rows(rate: float, width: int, solver: int) -> None:
    codec = Codec(SPACE)
    row = codec.row((rate, width, solver))
    assert codec.place(row) == (rate, width, solver)
    assert np.array_equal(codec.snapped(row[None])[0], row)


def test_losses_of_failures() -> None:
    history = History(SPACE, 1)
    states = [
        (TrialState.FINISHED, (1.0,)),
        (TrialState.FINISHED, (5.0,)),
        (TrialState.FINISHED, (2.0,)),
        (TrialState.FAILED, None),
        (TrialState.FINISHED, (math.nan,)),
        (TrialState.FAILED, (0.5,)),
        (TrialState.FAILED, (4.0,)),
        (TrialState.PENDING, None),
    ]
    history.read([Evaluation(n + 1, (n / 10, 0, 0), state, losses) for n, (state, losses) in enumerate(states)])
    assert history.ended.tolist() == list(range(7))
    assert history.losses(history.ended)[:, 0].tolist() == [1.0, 5.0, 2.0, 5.0, 5.0, 2.0, 4.0]
    assert history.pending[:, 0].tolist() == [0.7]


def test_what_runs_is_not_tried_again_nearby() -> None:
    history = History(SPACE, 1)
    history.read([Evaluation(1, (0.5, 2, 1), TrialState.PENDING)])
    assert not history.is_new(history.codec.row((0.5005, 2, 1)))
    assert history.is_new(history.codec.row((0.502, 2, 1)))
    assert history.is_new(history.codec.row((0.5, 3, 1)))
    assert history.is_new(history.codec.row((0.5, 2, 0)))


def test_a_long_study_is_looked_at_in_parts() -> None:
    losses = np.random.default_rng(0).random((5000, 1))
    order = best_first(losses, 300, 200)
    assert len(order) <= 500
    assert set(np.argsort(losses[:, 0])[:300]) | set(range(4800, 5000)) == set(order)
    assert np.all(np.diff(losses[order, 0]) >= 0)
    assert len(best_first(np.random.default_rng(0).random((5000, 3)), 300, 200)) <= 500
    chosen = best_and_newest(losses[:, 0], 100)
    assert len(chosen) == 100
    assert np.all(np.diff(chosen) > 0)
    assert set(np.argsort(losses[:, 0])[:50]) <= set(chosen)
    assert 4999 in chosen


def test_fronts() -> None:
    losses = np.array([[1.0, 5.0], [2.0, 2.0], [5.0, 1.0], [2.0, 3.0], [6.0, 6.0], [2.0, 2.0]])
    assert is_front(losses).tolist() == [True, True, True, False, False, True]
    order = best_first(losses, 10, 10).tolist()
    assert set(order[:4]) == {0, 1, 2, 5}
    assert order[4:] == [3, 4]
    assert set(order[:2]) == {0, 2}
    assert room(np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0]])).tolist() == [math.inf, 2.0, math.inf]


def test_designs_reach_every_part() -> None:
    design = best_design(10, 3, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.floor(design * 10), axis=0), np.tile(np.arange(10.0)[:, None], 3))
    assert best_design(5, 0, np.random.default_rng(0)).shape == (5, 0)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_density_sums_to_one_and_draws_what_it_says(count: int) -> None:
    codec, numbers = Codec(SPACE), np.random.default_rng(3)
    rows = codec.spread(numbers.random((count, 3)))
    density = Density(codec, rows, np.arange(1.0, count + 1))
    rates = (np.arange(400) + 0.5) / 400
    grid = np.array([[rate, (level + 0.5) / 5, choice] for rate in rates for level in range(5) for choice in range(3)])
    # A choice has a chance, numbers have densities.
    masses = np.exp(density.log(grid)) / 400 / 5
    assert np.sum(masses) == pytest.approx(1.0, abs=1e-4)
    drawn = codec.snapped(density.draw(20_000, numbers))
    for column, values in ((1, (np.arange(5) + 0.5) / 5), (2, np.arange(3))):
        for value in values:
            expected = float(np.sum(masses[np.isclose(grid[:, column], value)]))
            assert np.mean(np.isclose(drawn[:, column], value)) == pytest.approx(expected, abs=0.02)
    assert np.mean(drawn[:, 0]) == pytest.approx(float(np.sum(masses * grid[:, 0])), abs=0.02)


def process(noise: tuple[float, float] | None = (-9.0, 2.5)) -> GaussianProcess:
    numbers = np.random.default_rng(5)
    rows = numbers.random((20, 4))
    rows[:, 3] = numbers.integers(3, size=20)
    losses = np.sin(5 * rows[:, 0]) + rows[:, 1] + (rows[:, 3] == 1)
    return GaussianProcess(rows, losses, IS_CHOICE, Priors((0.0, 1.0), (0.0, 1.0), noise))


def test_slopes_of_likelihoods() -> None:
    model, numbers = process(), np.random.default_rng(6)
    for _ in range(5):
        parameters = numbers.normal(0.0, 1.0, 6)
        found = slopes_of(lambda point: model.unlikelihood(point)[0], parameters)
        assert model.unlikelihood(parameters)[1] == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_slopes_of_predictions() -> None:
    model = process()
    model.fit([model.likely], 30)
    row = np.array([0.31, 0.62, 0.47, 1.0])
    mean, deviation, mean_slopes, deviation_slopes = model.slopes(row)
    means, deviations = model.predict(row[None])
    assert (mean, deviation) == pytest.approx((means[0], deviations[0]), rel=1e-5)
    by_mean, by_deviation = (slopes_of(lambda point, at=at: model.slopes(point)[at], row)[:3] for at in (0, 1))
    assert mean_slopes[:3] == pytest.approx(by_mean, rel=1e-3, abs=1e-5)
    assert deviation_slopes[:3] == pytest.approx(by_deviation, rel=1e-3, abs=1e-5)
    assert mean_slopes[3] == deviation_slopes[3] == 0


def test_a_process_without_noise_knows_what_it_saw() -> None:
    model = process(noise=None)
    model.fit([model.likely], 50)
    means, deviations = model.predict(model.rows)
    assert means == pytest.approx(model.losses, abs=0.01)
    assert np.all(deviations < 0.02)
    # More likely than where the search began.
    assert model.unlikelihood(model.fit([model.likely], 50))[0] < model.unlikelihood(model.likely)[0]


@pytest.mark.parametrize("below", [-6.0, -1.0 - 1e-9, -1.0 + 1e-9, 0.0, 2.5])
def test_expected_improvement_is_the_integral(below: float) -> None:
    expected = quad(lambda loss: (1.0 - loss) * norm.pdf(loss, 1.0 - 0.7 * below, 0.7), -math.inf, 1.0, epsabs=0)[0]
    assert log_improvement(np.array([1.0 - 0.7 * below]), np.array([0.7]), 1.0)[0] == pytest.approx(math.log(expected))


@pytest.mark.parametrize("below", [-1e4, -300.0, -150.0, -5.0, -0.5, 3.0])
def test_improvement_has_slopes_however_unlikely_it_is(below: float) -> None:
    value, by_mean, by_deviation = log_improvement_slopes(-2 * below, 2.0, 0.0)
    assert value == pytest.approx(log_improvement(np.array([-2 * below]), np.array([2.0]), 0.0)[0])
    found = slopes_of(lambda point: log_improvement_slopes(point[0], point[1], 0.0)[0], np.array([-2 * below, 2.0]))
    assert (by_mean, by_deviation) == pytest.approx(tuple(found), rel=1e-3)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_bent_losses_keep_their_order(losses: list[float]) -> None:
    bent = normal(np.array(losses))
    assert np.all(np.isfinite(bent))
    order = np.argsort(losses, kind="stable")
    assert np.all(np.diff(bent[order]) >= -1e-9)


def test_losses_over_decades_are_bent_straight() -> None:
    bent = normal(np.exp(np.random.default_rng(1).normal(0.0, 3.0, 200)))
    assert abs(float(np.mean(bent))) < 1e-9
    assert float(np.std(bent)) == pytest.approx(1.0)
    assert float(np.max(bent)) < 4.0
