"""How every algorithm of ours goes on: the best value over trials, and over what was spent on them.

`python bench/tuning_curves.py --resume` goes on with a run that was interrupted. Algorithms are those of the product's
table, run as studies run them, one trial after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, announce
from resource_tasks import TASKS, ResourceTask
from search_runs import HERE, SEEDS, TRIALS, Key, Panel, draw, left_to_gain, run_all
from tuning_service.algorithms.base import Evaluation, Problem, TrialState
from tuning_service.algorithms.registry import ALGORITHMS, make_algorithm, read_settings
from tuning_service.domain.space import Place, Space

RAW = HERE / "raw" / "tuning-curves.jsonl"
GRID = "ExperimentGridSearch"
# More than are ever run: what is spent ends the searches that give some trials less than others.
MANY = 10_000
# After as much as so many whole trainings cost.
LOOKED_AT = (10, 30, 100)


@dataclass(frozen=True)
class Run:
    """Trials that beat all before them: number, all that was spent until its end, loss. `trials` and `spent` are of the
    whole search."""

    best: Sequence[tuple[int, int, float]]
    trials: int
    spent: int
    seconds: float

    def over(self, axis: int, ends: Sequence[int]) -> list[float]:
        """The best loss at each of these points of an axis: 0 is of trials, 1 of what was spent."""
        return [min(step[2] for step in self.best if step[axis] <= end) for end in ends]


def measure_curves(resume: bool = False) -> list[Row]:
    """Rows of the section `quality`."""
    wanted = [(task, algorithm, seed) for seed in SEEDS for task in TASKS for algorithm in ALGORITHMS]
    found = _read(RAW) if resume else {}
    missing = [key for key in wanted if key not in found]
    announce(f"{len(missing)} searches that spend as much as {TRIALS} whole trainings")
    with RAW.open("a" if resume else "w") as file:
        for key, run in run_all(_search, missing):
            found[key] = run
            file.write(_line(key, run) + "\n")
            file.flush()
    RAW.write_text("".join(_line(key, found[key]) + "\n" for key in wanted))
    return _rows(_draw(found))


def _search(key: Key) -> Run:
    # Of support vectors that do not converge: a bad place is a bad place.
    warnings.simplefilter("ignore")
    task, seed = TASKS[key[0]](), key[2]
    entry, began = ALGORITHMS[key[1]], time.perf_counter()
    grid = grid_of(task.space, TRIALS, seed)
    given = {"ResourceName": "resource", "ResourceValue": str(task.most)} if entry.needs_resource else {}
    settings: dict[str, Any] = read_settings(entry, given)
    if key[1] == GRID:
        settings["experiments"] = len(grid)
    most = MANY if entry.needs_resource else TRIALS
    algorithm = make_algorithm(key[1], Problem(task.space, settings, seed, max_trials=most))
    history: list[Evaluation] = []
    best: list[tuple[int, int, float]] = []
    spent = 0
    while spent < TRIALS * task.most:
        answer = algorithm.ask(history, 1)
        if not answer.suggestions:
            break
        [suggestion] = answer.suggestions
        notes = suggestion.notes
        place = grid[int(notes["experiment"])] if "experiment" in notes else suggestion.place
        resource = int(notes.get("resource", task.most))
        # As when programs leave no checkpoint: who goes on begins anew.
        spent += resource
        loss = task.loss(task.space.values(place), resource)
        history.append(Evaluation(len(history) + 1, suggestion.place, TrialState.FINISHED, (loss,), notes))
        if not best or loss < best[-1][2]:
            best.append((len(history), spent, loss))
    return Run(best, len(history), spent, time.perf_counter() - began)


def grid_of(space: Space, most: int, seed: int) -> list[Place]:
    """A grid of at most `most` places, as somebody might write it down: every choice, of numbers as many levels as
    there is room for, from end to end and evenly. In an order of chance, as the first ones of a list are no fair
    sample of it."""
    levels = [1 if dimension.is_ordered else dimension.size or 1 for dimension in space.dimensions]

    def room(index: int) -> bool:
        dimension = space.dimensions[index]
        enough = dimension.is_ordered and (dimension.size is None or levels[index] < dimension.size)
        return enough and np.prod(levels) // levels[index] * (levels[index] + 1) <= most

    while candidates := [index for index in range(len(levels)) if room(index)]:
        levels[min(candidates, key=lambda index: levels[index])] += 1
    axes: list[Sequence[int | float]] = []
    for dimension, count in zip(space.dimensions, levels, strict=True):
        shares = np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
        axes.append(
            shares.tolist() if dimension.size is None else [round(share * (dimension.size - 1)) for share in shares]
        )
    places: list[Place] = list(itertools.product(*axes))
    random.Random(seed).shuffle(places)
    return places


def _draw(found: Mapping[Key, Run]) -> list[Panel]:
    """The figure's panels: of each task over trials, then over what was spent."""
    over_trials: list[Panel] = []
    over_spent: list[Panel] = []
    for name in TASKS:
        task: ResourceTask = TASKS[name]()
        least = min(found[name, algorithm, seed].best[-1][2] for algorithm in ALGORITHMS for seed in SEEDS)
        usual = float(np.median([found[name, "Random", seed].over(0, [30]) for seed in SEEDS]))
        for panels, label, axis, unit in (
            (over_trials, "trials", 0, 1),
            (over_spent, "spent, in whole trainings", 1, task.most),
        ):
            ends = [unit * number for number in range(1, TRIALS + 1)]
            curves = {
                algorithm: left_to_gain([found[name, algorithm, seed].over(axis, ends) for seed in SEEDS], least, usual)
                for algorithm in ALGORITHMS
            }
            panels.append(Panel(task.name, label, curves))
    draw([*over_trials, *over_spent], "every-algorithm.svg")
    return over_spent


def _rows(panels: Sequence[Panel]) -> list[Row]:
    def shown(algorithm: str) -> str:
        means = [np.mean([panel.curves[algorithm][1][number - 1] for panel in panels]) for number in LOOKED_AT]
        return ", ".join(f"{mean:.2f}" for mean in means)

    tasks = f"{len(TASKS)} tasks x {len(SEEDS)} seeds"
    spent = " and ".join([", ".join(map(str, LOOKED_AT[:-1])), str(LOOKED_AT[-1])])
    return [
        Row(
            f"{algorithm}: left to gain when {spent} whole trainings are spent, {tasks}",
            shown(algorithm),
            f"{shown('Random')} Random",
            "",
            "",
            None,
        )
        for algorithm in ALGORITHMS
        if algorithm != "Random"
    ]


def _line(key: Key, run: Run) -> str:
    task, algorithm, seed = key
    return json.dumps(
        {
            "task": task,
            "algorithm": algorithm,
            "seed": seed,
            "trials": run.trials,
            "spent": run.spent,
            "seconds": round(run.seconds, 2),
            "best": run.best,
        }
    )


def _read(file: Path) -> dict[Key, Run]:
    runs = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    return {
        (run["task"], run["algorithm"], run["seed"]): Run(run["best"], run["trials"], run["spent"], run["seconds"])
        for run in runs
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true")
    for measured in measure_curves(parser.parse_args().resume):
        print(f"| {' | '.join(measured.cells)} |")
