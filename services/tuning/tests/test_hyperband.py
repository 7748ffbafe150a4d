"""Hyperband, ASHA and lists of experiments, whatever becomes of their trials."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_service.algorithms.base import Answer, Evaluation, Problem, TrialState
from tuning_service.algorithms.registry import make_algorithm
from tuning_service.algorithms.rungs import Levels
from tuning_service.domain.space import Choice, Continuous, DataType, Space
from tuning_service.domain.space import Levels as Values

WIDE = Space((Continuous("rate", -5.0, 0.0, 10.0), Values("width", DataType.INT, range(4, 64))))
# Six different trials.
NARROW = Space((Choice("solver", DataType.STR, ("Adam", "SGD")), Values("width", DataType.INT, (8, 16, 32))))
MOST_ROUNDS = 5000


def problem_of(
    space: Space = WIDE, *, most: int | None = None, R: int = 81, eta: float = 3.0, least: int = 1, seed: int = 7
) -> Problem:
    settings = {"ResourceName": "epochs", "ResourceValue": R, "MinResource": least, "eta": eta, "RandomSeed": None}
    return Problem(space, settings, seed, max_trials=most, parallel=4)


@dataclass(frozen=True)
class Ended:
    """All trials of a study, and how many there were whenever a worker had nothing to do."""

    trials: Sequence[Evaluation]
    idle: Sequence[int]


def run(
    name: str,
    problem: Problem,
    *,
    workers: int = 4,
    seed: int = 1,
    loss: Callable[[Evaluation], float | None] = lambda trial: float(trial.place[0]),
    check_restarts: bool = False,
) -> Ended:
    """Run a study to its end; trials end in any order, without a number where `loss` has none."""
    order = random.Random(seed)
    kept = make_algorithm(name, problem)
    trials: list[Evaluation] = []
    idle: list[int] = []
    for _ in range(MOST_ROUNDS):
        pending = [trial for trial in trials if trial.state is TrialState.PENDING]
        free = workers - len(pending)
        answer = kept.ask(tuple(trials), free) if free else Answer([])
        if free and check_restarts:
            assert make_algorithm(name, problem).ask(tuple(trials), free) == answer
        assert len(answer.suggestions) <= free
        for suggestion in answer.suggestions:
            trials.append(Evaluation(len(trials) + 1, suggestion.place, TrialState.PENDING, None, suggestion.notes))
        pending = [trial for trial in trials if trial.state is TrialState.PENDING]
        if not pending:
            assert answer.is_exhausted, "nothing runs, and nothing is to come"
            return Ended(trials, idle)
        if answer.is_exhausted:
            assert free > len(answer.suggestions)
        elif len(pending) < workers:
            idle.append(len(trials))
        for trial in order.sample(pending, order.randint(1, len(pending))):
            value = loss(trial)
            state = TrialState.FAILED if value is None else TrialState.FINISHED
            trials[trial.number - 1] = replace(trial, state=state, losses=None if value is None else (value,))
    raise AssertionError(f"no end after {len(trials)} trials")


def by_note(trials: Sequence[Evaluation], *names: str) -> Mapping[Any, int]:
    return Counter(tuple(trial.notes[name] for name in names) for trial in trials)


@pytest.mark.parametrize(("most", "jobs", "configurations"), [(81, 206, 143), (27, 69, 49), (10, 22, 17)])
def test_brackets_are_those_of_the_paper(most: int, jobs: int, configurations: int) -> None:
    trials = run("Hyperband", problem_of(R=most)).trials
    assert len(trials) == jobs
    assert sum(trial.notes["rung"] == 0 for trial in trials) == configurations
    deepest = max(trial.notes["rungs"] for trial in trials) - 1
    for depth in range(deepest + 1):
        bracket = deepest - depth
        rungs = {
            rung: count for (number, rung), count in by_note(trials, "bracket", "rung").items() if number == bracket
        }
        first = math.ceil(Fraction(deepest + 1, depth + 1) * 3**depth)
        assert rungs == {rung: first // 3**rung for rung in range(depth + 1)}
        resources = {trial.notes["resource"] for trial in trials if trial.notes["bracket"] == bracket}
        assert resources == {round(Fraction(most, 3**power)) for power in range(depth + 1)}


@pytest.mark.parametrize(
    ("most", "least", "eta", "expected"),
    [
        # log(243) / log(3) is 4.999...; log(125) / log(5) is 3.0000000000000004.
        (243, 1, 3.0, (1, 3, 9, 27, 81, 243)),
        (125, 1, 5.0, (1, 5, 25, 125)),
        (1000, 1, 10.0, (1, 10, 100, 1000)),
        (81, 4, 3.0, (9, 27, 81)),
        (81, 81, 3.0, (81,)),
        (100, 10, 2.5, (16, 40, 100)),
        (1, 1, 3.0, (1,)),
        # 121 / 2.2 / 2.2 is 24.99... in floating point.
        (121, 25, 2.2, (25, 55, 121)),
    ],
)
def test_resources(most: int, least: int, eta: float, expected: tuple[int, ...]) -> None:
    levels = Levels.of({"ResourceValue": most, "MinResource": least, "eta": eta})
    assert levels.resources == expected


def test_how_many_go_on_is_exact() -> None:
    levels = Levels.of({"ResourceValue": 121, "MinResource": 1, "eta": 2.2})
    # 33 / 2.2 is 14.99... in floating point.
    assert [levels.kept(trials) for trials in (1, 2, 3, 33, 121)] == [0, 0, 1, 15, 55]


@settings(deadline=None)
@given(most=st.integers(1, 10_000), share=st.floats(0, 1), eta=st.floats(1.5, 100))
def test_resources_rise_from_the_least_to_all(most: int, share: float, eta: float) -> None:
    least = max(1, round(most * share))
    resources = Levels.of({"ResourceValue": most, "MinResource": least, "eta": eta}).resources
    assert resources[-1] == most
    assert resources[0] >= least
    assert all(low < high for low, high in itertools.pairwise(resources))


def test_the_least_resource_is_at_most_all_of_it() -> None:
    with pytest.raises(ValueError, match="MinResource: 9 is not valid; allowed: up to ResourceValue, 3"):
        make_algorithm("Hyperband", problem_of(R=3, least=9))


def test_the_best_of_a_rung_go_on() -> None:
    trials = run("Hyperband", problem_of(R=27), workers=3).trials
    assert trials == run("Hyperband", problem_of(R=27), workers=3).trials
    by_number = {trial.number: trial for trial in trials}
    for bracket, rung in by_note(trials, "bracket", "rung"):
        here = [trial for trial in trials if (trial.notes["bracket"], trial.notes["rung"]) == (bracket, rung)]
        gone_on = {
            trial.notes["parent"]
            for trial in trials
            if (trial.notes["bracket"], trial.notes["rung"]) == (bracket, rung + 1)
        }
        ranked = sorted(here, key=lambda trial: (trial.losses, trial.number))
        assert gone_on == {trial.number for trial in ranked[: len(gone_on)]}
        for number in gone_on:
            assert by_number[number].state is TrialState.FINISHED
    for trial in trials:
        if parent := trial.notes.get("parent"):
            assert trial.place == by_number[parent].place
            assert trial.notes["resource"] > by_number[parent].notes["resource"]


def test_ties_go_by_number() -> None:
    trials = run("Hyperband", problem_of(R=9), loss=lambda trial: 1.0).trials
    parents = [trial.notes["parent"] for trial in trials if trial.notes["bracket"] == 0 and trial.notes["rung"] == 1]
    assert parents == [1, 2, 3]


def test_what_fails_goes_no_further_and_holds_up_nobody() -> None:
    def loss(trial: Evaluation) -> float | None:
        return None if trial.notes["rung"] == 0 and trial.number % 2 else float(trial.place[0])

    trials = run("Hyperband", problem_of(R=27), loss=loss).trials
    by_number = {trial.number: trial for trial in trials}
    parents = [by_number[trial.notes["parent"]] for trial in trials if "parent" in trial.notes]
    assert all(parent.state is TrialState.FINISHED for parent in parents)
    # Half of the first rung is more than the third that is kept: the bracket is as large as it would have been.
    assert by_note(trials, "bracket", "rung")[0, 1] == 9
    assert by_note(trials, "bracket", "rung")[0, 3] == 1


def test_a_rung_of_which_all_failed_ends_its_bracket() -> None:
    trials = run("Hyperband", problem_of(R=9), loss=lambda trial: None if trial.notes["rungs"] > 1 else 1.0).trials
    assert by_note(trials, "bracket", "rung") == {(0, 0): 9, (1, 0): 5, (2, 0): 3}


def test_losses_that_are_no_numbers_count_as_failed() -> None:
    trials = run("Hyperband", problem_of(R=9), loss=lambda trial: math.nan if trial.number < 9 else 5.0).trials
    parents = [trial.notes["parent"] for trial in trials if trial.notes["bracket"] == 0 and trial.notes["rung"] == 1]
    assert parents == [9]
    assert by_note(trials, "bracket", "rung")[0, 2] == 1


def test_workers_are_idle_only_when_every_bracket_has_begun() -> None:
    ended = run("Hyperband", problem_of(R=27), workers=16, seed=3)
    begun = [sum(trial.notes["rung"] == 0 for trial in ended.trials[:known]) for known in ended.idle]
    assert set(begun) == {49}


def test_with_room_for_more_it_begins_again() -> None:
    trials = run("Hyperband", problem_of(R=9, most=44)).trials
    # 22 a cycle: 13, 6 and 3.
    assert len(trials) == 44
    assert [
        sum(count for (number, _), count in by_note(trials, "bracket", "rung").items() if number == bracket)
        for bracket in range(6)
    ] == [13, 6, 3, 13, 6, 3]


@settings(deadline=None)
@given(most=st.integers(1, 200), R=st.sampled_from([1, 4, 9, 27, 81]), eta=st.sampled_from([2.0, 2.5, 3.0, 4.0]))
def test_a_limit_is_used_up_and_something_gets_everything(most: int, R: int, eta: float) -> None:
    trials = run("Hyperband", problem_of(R=R, eta=eta, most=most), workers=3).trials
    assert len(trials) <= most
    assert any(trial.notes["resource"] == R for trial in trials)
    # What is left over is less than a bracket of one rung would need.
    assert len(trials) == most


def test_a_limit_below_one_bracket_makes_it_smaller() -> None:
    trials = run("Hyperband", problem_of(R=81, most=50)).trials
    # 81 configurations would take 121 trials; the next less deep one takes 40 of its own kind.
    assert by_note([trial for trial in trials if trial.notes["bracket"] == 0], "rung", "resource") == {
        (0, 3): 35,
        (1, 9): 11,
        (2, 27): 3,
        (3, 81): 1,
    }


@pytest.mark.parametrize("name", ["Hyperband", "ASHA"])
@pytest.mark.parametrize("workers", [1, 5, 40])
def test_finitely_many_configurations_are_tried_once_each(name: str, workers: int) -> None:
    trials = run(name, problem_of(NARROW, R=9), workers=workers).trials
    begun = [trial.place for trial in trials if trial.notes["rung"] == 0]
    assert len(begun) == len(set(begun)) == 6


@pytest.mark.parametrize("name", ["Hyperband", "ASHA"])
def test_a_space_of_one_point(name: str) -> None:
    space = Space(())
    problem = problem_of(space, R=9)
    trials = run(name, problem, loss=lambda trial: 1.0).trials
    assert [trial.place for trial in trials] == [()]


@pytest.mark.parametrize("name", ["Hyperband", "ASHA"])
@settings(deadline=None)
@given(data=st.data())
def test_every_pattern_ends_and_a_restart_changes_nothing(name: str, data: st.DataObject) -> None:
    space = data.draw(st.sampled_from([WIDE, NARROW]))
    most = data.draw(
        st.one_of(st.integers(1, 60), st.none() if space is NARROW or name == "Hyperband" else st.nothing())
    )
    problem = problem_of(
        space,
        most=most,
        R=data.draw(st.sampled_from([1, 3, 10, 27])),
        eta=data.draw(st.sampled_from([1.5, 2.0, 3.0])),
        seed=data.draw(st.integers(0, 2**31)),
    )
    failing = data.draw(st.floats(0, 1))
    luck = random.Random(data.draw(st.integers(0, 2**31)))
    run(
        name,
        problem,
        workers=data.draw(st.integers(1, 9)),
        seed=data.draw(st.integers(0, 2**31)),
        loss=lambda trial: None if luck.random() < failing else luck.choice([luck.random(), 0.5, math.inf]),
        check_restarts=True,
    )


def test_trials_of_others_are_no_part_of_it() -> None:
    problem = problem_of(NARROW, R=9)
    for name in ("Hyperband", "ASHA"):
        others = [Evaluation(1, (0, 0), TrialState.FINISHED, (0.1,)), Evaluation(2, (1, 2), TrialState.PENDING)]
        answer = make_algorithm(name, problem).ask(others, 10)
        places = [suggestion.place for suggestion in answer.suggestions]
        assert set(places) == {(0, 1), (0, 2), (1, 0), (1, 1)}
        assert all(suggestion.notes["rung"] == 0 for suggestion in answer.suggestions)


@pytest.mark.parametrize("name", ["Hyperband", "ASHA"])
def test_trials_of_others_count_against_the_limit(name: str) -> None:
    problem = problem_of(R=9, most=15)
    others = [Evaluation(number, (0.5, number), TrialState.FINISHED, (0.1,)) for number in range(1, 11)]
    answer = make_algorithm(name, problem).ask(others, 10)
    # Five are left; of Hyperband one bracket of two rungs: three, one, and one on its own.
    assert len(answer.suggestions) == (4 if name == "Hyperband" else 5)


def test_asha_promotes_without_waiting() -> None:
    problem = problem_of(R=9)
    algorithm = make_algorithm("ASHA", problem)
    first = algorithm.ask([], 9).suggestions
    assert all(suggestion.notes == {"rung": 0, "resource": 1} for suggestion in first)
    trials = [Evaluation(n, one.place, TrialState.PENDING, None, one.notes) for n, one in enumerate(first, 1)]
    for number, loss in ((4, 0.3), (2, 0.1), (7, 0.2)):
        trials[number - 1] = replace(trials[number - 1], state=TrialState.FINISHED, losses=(loss,))
    # Three have ended: the best of them goes on, six still run.
    promoted, new = algorithm.ask(trials, 2).suggestions
    assert (promoted.place, promoted.notes) == (first[1].place, {"rung": 1, "resource": 3, "parent": 2})
    assert new.notes["rung"] == 0
    trials.append(Evaluation(10, promoted.place, TrialState.PENDING, None, promoted.notes))
    # Once only, though it is still the best.
    assert algorithm.ask(trials, 1).suggestions[0].notes["rung"] == 0
    # Failures count as ended: of six two go on.
    for number in (1, 3, 5):
        trials[number - 1] = replace(trials[number - 1], state=TrialState.FAILED)
    assert algorithm.ask(trials, 1).suggestions[0].notes == {"rung": 1, "resource": 3, "parent": 7}


def test_asha_leaves_no_worker_idle_and_reaches_the_top() -> None:
    ended = run("ASHA", problem_of(R=27, most=120), workers=16)
    assert not ended.idle
    assert len(ended.trials) == 120
    rungs = by_note(ended.trials, "rung")
    assert rungs[3,] >= 1
    assert all(rungs[rung,] > rungs[rung + 1,] for rung in range(3))


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_experiments_run_once_each_in_their_order(workers: int) -> None:
    problem = Problem(Space(()), {"experiments": 11}, 1)
    trials = run("ExperimentGridSearch", problem, workers=workers, loss=lambda trial: None, check_restarts=True).trials
    assert [trial.notes for trial in trials] == [{"experiment": index} for index in range(11)]
    assert {trial.place for trial in trials} == {()}
