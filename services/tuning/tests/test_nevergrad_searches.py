"""What only searches by nevergrad's optimizers have: the optimizers, their order of asking and telling, courses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches_room import MIXED, Study, bowl, problem_of, unit
from servicekit.errors import ServiceError
from tuning_service.algorithms import nevergrad_search
from tuning_service.algorithms.base import Evaluation, Suggestion, TrialState
from tuning_service.algorithms.nevergrad_search import TOLD, Nevergrad
from tuning_service.algorithms.registry import ALGORITHMS, OPTIMIZERS, make_algorithm, read_settings
from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Place, Space

PLANE = Space((Continuous("x", 0.0, 1.0), Continuous("y", 0.0, 1.0)))


def study_of(optimizer: str, space: Space = MIXED, *, most: int | None = None, **settings: Any) -> Study:
    problem = replace(problem_of("Nevergrad", space, given={"Optimizer": optimizer}), max_trials=most)
    if space is not MIXED:
        settings.setdefault("losses", lambda place: [sum((number - 0.3) ** 2 for number in unit(place, space))])
    return Study(problem, "Nevergrad", **settings)


class Listening:
    """In the place of an optimizer: writes down what it is told."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.told = optimizer, list[tuple[tuple[Any, ...], float]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def tell(self, candidate: Any, loss: float) -> None:
        self.told.append((candidate.args, loss))
        self.optimizer.tell(candidate, loss)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> list[Listening]:
    """All optimizers that were made."""
    made: list[Listening] = []

    def listened(optimizer: Any) -> Any:
        def make(*args: Any, **settings: Any) -> Listening:
            made.append(Listening(optimizer(*args, **settings)))
            return made[-1]

        return make

    registry = nevergrad_search.nevergrad.optimizers.registry
    table = {name: listened(registry[name]) for name in OPTIMIZERS}
    monkeypatch.setattr(nevergrad_search.nevergrad.optimizers, "registry", table)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("space", [MIXED, PLANE], ids=["mixed", "plane"])
def test_every_optimizer_goes_on_after_its_budget_and_a_restart(optimizer: str, space: Space) -> None:
    luck = random.Random(3)

    def losses(place: Place) -> Sequence[float] | None:
        return None if luck.random() < 0.2 else [sum((number - 0.3) ** 2 for number in unit(place, space))]

    study = study_of(optimizer, space, most=15, losses=losses).run(40)
    assert len({space.key(place) for place in study.places}) == 40
    study.ask(3)
    # As it may be in another process.
    np.random.seed(4711)
    assert make_algorithm("Nevergrad", study.problem).ask(study.trials[:-3], 3).suggestions == [
        Suggestion(trial.place, trial.notes) for trial in study.trials[-3:]
    ]


ELSEWHERE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_nevergrad_searches import study_of
print(json.dumps([study_of(optimizer).run(24).places for optimizer in ("NGOpt", "DE", "CMA")]))
"""


@pytest.mark.parametrize("optimizer", ["ScrHammersleySearch", "NGOpt"])
def test_a_design_that_is_over(optimizer: str) -> None:
    """With as many workers as trials NGOpt takes one, too; what it repeats is a part of it."""
    space = Space((Levels("width", DataType.INT, range(5)), Levels("depth", DataType.INT, range(2))))
    study = study_of(optimizer, space, most=6, workers=4).run(50)
    assert study.is_exhausted
    assert len(study.trials) == 10


@pytest.mark.slow
def test_other_processes_come_to_the_same_trials() -> None:
    """Whatever the seed of their hashes."""
    found = [
        json.loads(
            subprocess.check_output(
                [sys.executable, "-P", "-c", ELSEWHERE, str(Path(__file__).parent)],
                env={**os.environ, "PYTHONHASHSEED": str(seed)},
            )
        )
        for seed in (1, 2)
    ]
    assert found[0] == found[1]
    assert len(found[0][0]) == 24


@pytest.mark.parametrize("optimizer", ["ScrHammersleySearch", "CMA"])
def test_after_a_course_another_one_goes_on(
    optimizer: str, monkeypatch: pytest.MonkeyPatch, listening: list[Listening]
) -> None:
    monkeypatch.setattr(nevergrad_search, "COURSE_TRIALS", 8)
    monkeypatch.setattr(nevergrad_search, "COURSE_BEST", 3)
    study = study_of(optimizer, PLANE, workers=3)
    # Trials that nobody asked the optimizer for begin the search, and the second course.
    known = [Evaluation(1, (0.9, 0.9), TrialState.FINISHED, (0.72,)), Evaluation(2, (0.1, 0.2), TrialState.PENDING)]
    study.trials += known
    study.run(8)
    study.trials.append(Evaluation(9, (0.31, 0.3), TrialState.FINISHED, (0.0001,)))
    study.check_restarts = True
    study.run(28)
    # One that remembers no other course, at each ask: those made anew are among them.
    first, second = listening[0], next(one for one in listening if one.told and len(one.told) < 20)
    assert ((0.9, 0.9), 0.72) in first.told
    assert second.told
    listening.clear()
    make_algorithm("Nevergrad", study.problem).ask(study.trials, 1)
    (made,) = listening
    ended = sorted(trial.losses[0] for trial in study.trials[:24] if trial.losses)
    # The best of what had ended, in order of their numbers.
    assert {loss for _, loss in made.told[:3]} <= set(ended[:6])
    assert 0.0001 in {loss for _, loss in made.told[:3]}


def test_the_order_of_ends_is_in_the_notes(listening: list[Listening]) -> None:
    study = study_of("TwoPointsDE", PLANE).run(20)
    told = [number for trial in study.trials for number in trial.notes[TOLD]]
    ended = [trial.number for trial in study.trials if trial.state is not TrialState.PENDING]
    assert sorted(told) == sorted(set(told))
    # The last ones ended after the last ask.
    assert set(told) <= set(ended)
    assert len(told) >= 14
    heard = listening[0].told
    listening.clear()
    make_algorithm("Nevergrad", study.problem).ask(study.trials, 1)
    assert listening[0].told[: len(heard)] == heard


def test_what_failed_counts_as_the_worst_so_far(listening: list[Listening]) -> None:
    algorithm = make_algorithm("Nevergrad", study_of("CMA", PLANE).problem)
    trials: list[Evaluation] = []
    outcomes: Sequence[tuple[TrialState, tuple[float, ...] | None]] = [
        (TrialState.FAILED, None),
        (TrialState.FINISHED, (float("nan"),)),
        (TrialState.FINISHED, (2.0,)),
        (TrialState.FINISHED, (5.0,)),
        (TrialState.FINISHED, (1.0,)),
        (TrialState.FAILED, None),
        (TrialState.FAILED, (0.5,)),
        (TrialState.FINISHED, (float("inf"),)),
        (TrialState.FINISHED, (-1e300,)),
    ]
    for number, (state, losses) in enumerate(outcomes, 1):
        (suggestion,) = algorithm.ask(trials, 1).suggestions
        trials.append(Evaluation(number, suggestion.place, state, losses, suggestion.notes))
    algorithm.ask(trials, 1)
    told = [loss for _, loss in listening[0].told]
    # Nothing is told before it is known how bad is bad; what was given up is not better than the median.
    assert told[:8] == [2.0, 2.0, 2.0, 5.0, 1.0, 5.0, 2.0, 5.0]
    assert -1e13 < told[8] < -1e10


def test_what_is_repeated_is_answered_with_the_loss_that_is_known(listening: list[Listening]) -> None:
    space = Space((Levels("width", DataType.INT, range(6)), Choice("solver", DataType.STR, ("Adam", "SGD"))))
    study = study_of("DiscreteOnePlusOne", space, workers=1).run(50)
    assert study.is_exhausted
    assert sorted(study.places) == [(width, solver) for width in range(6) for solver in range(2)]
    losses = {trial.place: trial.losses[0] for trial in study.trials if trial.losses}
    told = Counter((min(5, int(width * 6)), solver) for (width, solver), _ in listening[0].told)
    assert max(told.values()) > 1
    for (width, solver), loss in listening[0].told:
        assert loss == losses[min(5, int(width * 6)), solver]


@pytest.mark.parametrize(
    ("asked", "taken"), [([(0.5004, 0.5), (0.6, 0.6)], (0.6, 0.6)), ([(0.5004, 0.5)] * 20, (0.5004, 0.5))]
)
def test_what_runs_keeps_the_same_away_but_not_for_ever(
    asked: Sequence[Place], taken: Place, listening: list[Listening]
) -> None:
    study = study_of("PSO", PLANE)
    study.ask(1)
    (optimizer,) = listening
    spawned = iter([(0.5, 0.5), *asked])
    optimizer.ask = lambda: optimizer.parametrization.spawn_child(new_value=(next(spawned), {}))
    study.ask(1)
    study.ask(1)
    assert study.places[1] == pytest.approx((0.5, 0.5))
    assert study.places[2] == pytest.approx(taken)


def test_every_value_has_its_share() -> None:
    """The ends, too, and those of a choice among more than have weights."""
    space = Space(
        (
            Levels("width", DataType.INT, range(4)),
            Choice("name", DataType.STR, [str(index) for index in range(40)]),
            Levels("same", DataType.INT, [8]),
            Continuous("x", 0.0, 1.0),
        )
    )
    places = study_of("ScrHammersleySearch", space, most=200).run(200).places
    widths, names = (Counter(place[index] for place in places) for index in (0, 1))
    assert all(abs(widths[value] - 50) <= 5 for value in range(4))
    assert all(2 <= names[value] <= 8 for value in range(40))
    assert {place[2] for place in places} == {0}
    assert sorted(round(place[3] * 10) for place in places)[:: len(places) - 1] == [0, 10]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["NGOpt", "CMA", "OnePlusOne", "MetaModel"])
def test_optimizers_find_more_than_chance(optimizer: str) -> None:
    found = study_of(optimizer, most=60, losses=bowl, workers=2).run(60).best
    drawn = [Study(problem_of("Random", seed=seed), "Random", seed=seed).run(60).best for seed in range(5)]
    assert found < sorted(drawn)[2]


def test_another_version_of_a_library_changes_what_comes_and_not_what_was(listening: list[Listening]) -> None:
    study = study_of("TwoPointsDE", PLANE).run(12)
    other = [replace(trial, place=(trial.place[0], 0.5 * trial.place[1])) for trial in study.trials]
    listening.clear()
    asked = make_algorithm("Nevergrad", study.problem).ask(other, 2)
    assert len(asked.suggestions) == 2
    assert make_algorithm("Nevergrad", study.problem).ask(other, 2) == asked
    told = {args for args, _ in listening[0].told}
    assert told == {trial.place for trial in other if trial.state is not TrialState.PENDING}


def test_one_worker_is_told_as_two(listening: list[Listening]) -> None:
    """What NGOpt takes for one waits for ever when it is asked twice, as here, where nothing can be told."""
    algorithm = make_algorithm("Nevergrad", replace(study_of("NGOpt", PLANE).problem, parallel=1))
    (first,) = algorithm.ask([], 1).suggestions
    assert listening[0].num_workers == 2
    failed = Evaluation(1, first.place, TrialState.FAILED, None, first.notes)
    assert algorithm.ask([failed], 1).suggestions[0].place != first.place


def test_choices_are_no_noise(listening: list[Listening]) -> None:
    study_of("NGOpt").run(1)
    assert nevergrad_search.nevergrad.p.helpers.analyze(listening[0].parametrization).deterministic


def test_one_that_runs_again_is_told_again() -> None:
    """A study that goes on runs what was stopped once more."""
    study = study_of("OnePlusOne", PLANE).run(12)
    losses = {index: trial.losses[0] for index, trial in enumerate(study.trials) if trial.losses}
    ended = min(losses, key=losses.__getitem__)
    again = list(study.trials)
    again[ended] = replace(again[ended], state=TrialState.PENDING, losses=None)
    assert study.algorithm.ask(again, 2) == make_algorithm("Nevergrad", study.problem).ask(again, 2)
    again[ended] = replace(again[ended], state=TrialState.FINISHED, losses=(9.0,))
    assert study.algorithm.ask(again, 2) == make_algorithm("Nevergrad", study.problem).ask(again, 2)


def test_numpys_own_numbers_stay_as_they_were() -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    study_of("NGOpt").run(6)
    assert np.array_equal(np.random.random(3), expected)


def test_optimizers_have_names() -> None:
    entry = ALGORITHMS["Nevergrad"]
    assert read_settings(entry, {})["Optimizer"] == "NGOpt"
    assert read_settings(entry, {"optimizer": " twopointsde "})["Optimizer"] == "TwoPointsDE"
    with pytest.raises(ServiceError) as refused:
        read_settings(entry, {"Optimizer": "BO"})
    assert refused.value.message == (
        f"algoParams.Optimizer: 'BO' is not valid; allowed: one of {', '.join(OPTIMIZERS)}"
    )
    assert isinstance(make_algorithm("nevergrad", study_of("PSO").problem), Nevergrad)


def test_nobody_else_waits_for_nevergrad() -> None:
    check = (
        "import sys, tuning_service.wiring\n"
        "from tuning_service.algorithms import registry\n"
        "from tuning_service.domain.evaluation import Problem\n"
        "from tuning_service.domain.space import Space\n"
        "for name in ('Random', 'TPE', 'Bayesian'):\n"
        "    settings = registry.read_settings(registry.ALGORITHMS[name], {})\n"
        "    registry.make_algorithm(name, Problem(Space([]), settings, 1)).ask([], 1)\n"
        "sys.exit('nevergrad' in sys.modules)"
    )
    subprocess.check_call([sys.executable, "-P", "-c", check])
