"""How good searches are: the best of 30 and of 100 trials of ours and of peers, on the same tasks with the same seeds.

`python bench/tuning_quality.py --resume` goes on with a run that was interrupted; `--development` compares on the tasks
that the algorithms were worked on with. Quality depends on seeds alone, not on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, announce, publish
from search_runs import HERE, PEERS, SEEDS, TRIALS, Key, Panel, draw, left_to_gain, run_all
from tuning_asks import measure_asks
from tuning_curves import measure_curves

RAW = HERE / "raw" / "tuning-quality.jsonl"
# nevergrad, which the product installs, has its TPE from hyperopt.
INSTALLED = ("optuna==5.0.0", "colorlog==6.12.0", "hyperopt==0.3.0")
DEVELOPMENT_SEEDS = range(1000, 1010)
BUDGETS = (30, 100)
SAMPLERS = ("Random", "Tpe", "Bayesian", "Optuna TPE", "Optuna GP", "nevergrad HyperOpt")
# Values that differ by less than this part of what lies between the best known and what random search finds in 30
# trials are ties: nobody tunes for them.
TIE = 1e-3

Ranks = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Run:
    """The best loss after each trial of a search, and the seconds that it took."""

    best: Sequence[float]
    seconds: float


def measure_quality(resume: bool = False, development: bool = False) -> list[Row]:
    """Rows of the section `quality`."""
    from tuning_tasks import DEVELOPMENT, MEASURED

    tasks, seeds = (DEVELOPMENT, DEVELOPMENT_SEEDS) if development else (MEASURED, SEEDS)
    raw = RAW.with_name("development.jsonl") if development else RAW
    wanted = [(task, sampler, seed) for seed in seeds for task in tasks for sampler in SAMPLERS]
    found = _read(raw) if resume else {}
    missing = [key for key in wanted if key not in found]
    announce(f"{len(missing)} searches of {TRIALS} trials")
    _install_peers()
    raw.parent.mkdir(exist_ok=True)
    with raw.open("a" if resume else "w") as file:
        for key, run in run_all(_search, missing):
            found[key] = run
            file.write(_line(key, run) + "\n")
            file.flush()
    raw.write_text("".join(_line(key, found[key]) + "\n" for key in wanted))
    ranks, by_task = _ranks(found, list(tasks), seeds)
    for line in _lines(by_task, ranks):
        print(line)
    if not development:
        _draw(found, list(tasks))
    pairs = (("Tpe", "Optuna TPE"), ("Bayesian", "Optuna GP"))
    return [
        Row(
            f"{ours}: mean rank of the best of {budget}, {len(tasks)} tasks x {len(seeds)} seeds",
            f"{ranks[budget][ours]:.2f} of {len(SAMPLERS)}",
            f"{ranks[budget][peer]:.2f} {peer}, {ranks[budget]['Random']:.2f} Random, "
            f"{ranks[budget]['nevergrad HyperOpt']:.2f} nevergrad HyperOpt",
            f"{ranks[budget][ours] / ranks[budget][peer]:.2f}",
            f"not worse than {peer}",
            ranks[budget][ours] <= ranks[budget][peer],
        )
        for ours, peer in pairs
        for budget in BUDGETS
    ]


def _search(key: Key) -> Run:
    # After the product's packages, of which there may be others beside Optuna and hyperopt.
    sys.path.append(str(PEERS / "optuna"))
    from tuning_samplers import timed
    from tuning_tasks import TASKS

    task, sampler, seed = key
    losses, seconds = timed(sampler, TASKS[task](), seed, TRIALS)
    return Run(np.minimum.accumulate(losses).tolist(), seconds)


def _ranks(
    found: Mapping[Key, Run], tasks: Sequence[str], seeds: Sequence[int]
) -> tuple[Ranks, Mapping[str, Mapping[int, Sequence[float]]]]:
    """Mean ranks by budget and sampler, and of each task by budget in the order of SAMPLERS; ties share their rank."""
    from scipy.stats import rankdata

    by_task: dict[str, dict[int, Sequence[float]]] = {}
    for task in tasks:
        least = min(found[task, sampler, seed].best[-1] for sampler in SAMPLERS for seed in seeds)
        usual = float(np.median([found[task, "Random", seed].best[29] for seed in seeds]))
        step = TIE * (usual - least) or 1e-12
        by_task[task] = {}
        for budget in BUDGETS:
            best = np.array([[found[task, sampler, seed].best[:budget][-1] for sampler in SAMPLERS] for seed in seeds])
            by_task[task][budget] = np.mean(rankdata(np.round((best - least) / step), axis=1), axis=0).tolist()
    means = {budget: np.mean([by_task[task][budget] for task in tasks], axis=0) for budget in BUDGETS}
    return {budget: dict(zip(SAMPLERS, map(float, means[budget]), strict=True)) for budget in BUDGETS}, by_task


def _lines(by_task: Mapping[str, Mapping[int, Sequence[float]]], ranks: Ranks) -> Iterator[str]:
    """A table in Markdown."""
    for budget in BUDGETS:
        yield f"| best of {budget} | {' | '.join(SAMPLERS)} |"
        yield f"|---|{'---|' * len(SAMPLERS)}"
        for task, of_task in by_task.items():
            yield f"| {task} | {' | '.join(f'{rank:.2f}' for rank in of_task[budget])} |"
        yield f"| mean | {' | '.join(f'{ranks[budget][sampler]:.2f}' for sampler in SAMPLERS)} |"
        yield ""


def _line(key: Key, run: Run) -> str:
    """A run as a line: the trials that beat all before them, with their losses."""
    task, sampler, seed = key
    better = [[number + 1, loss] for number, loss in enumerate(run.best) if number == 0 or loss < run.best[number - 1]]
    return json.dumps(
        {
            "task": task,
            "sampler": sampler,
            "seed": seed,
            "trials": len(run.best),
            "seconds": round(run.seconds, 2),
            "best": better,
        }
    )


def _read(file: Path) -> dict[Key, Run]:
    found = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        run: dict[str, Any] = json.loads(line)
        steps = dict(run["best"])
        best: list[float] = []
        for number in range(1, run["trials"] + 1):
            best.append(steps.get(number, best[-1] if best else np.nan))
        found[run["task"], run["sampler"], run["seed"]] = Run(best, run["seconds"])
    return found


def _install_peers() -> None:
    done = PEERS / "optuna-installed"
    if not done.exists() or done.read_text() != str(INSTALLED):
        command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
        subprocess.check_call([sys.executable, *command, "--target", str(PEERS / "optuna"), *INSTALLED])
        done.write_text(str(INSTALLED))


def _draw(found: Mapping[Key, Run], tasks: Sequence[str]) -> None:
    from tuning_tasks import TASKS

    panels = []
    for task in tasks:
        least = min(found[task, sampler, seed].best[-1] for sampler in SAMPLERS for seed in SEEDS)
        usual = float(np.median([found[task, "Random", seed].best[29] for seed in SEEDS]))
        curves = {
            sampler: left_to_gain([found[task, sampler, seed].best for seed in SEEDS], least, usual)
            for sampler in SAMPLERS
        }
        panels.append(Panel(TASKS[task]().name, "trials", curves))
    draw(panels, "best-over-trials.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--development", action="store_true")
    chosen = parser.parse_args()
    if chosen.development:
        for measured in measure_quality(chosen.resume, development=True):
            print(" | ".join(measured.cells))
    else:
        publish("quality", [*measure_quality(chosen.resume), *measure_curves(chosen.resume), *measure_asks()])
