"""What comparisons of searches share: a search a core, and figures of what they found."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench"
PLOTS = HERE.parent / "docs" / "plots"
SEEDS, TRIALS = range(10), 100

Key = tuple[str, str, int]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Panel:
    """One plot: of each sampler the quartiles of what is left to gain, at 1, 2, 3 ... of what `label` says."""

    title: str
    label: str
    curves: Mapping[str, Sequence[Sequence[float]]]


def run_all(search: Callable[[Key], Found], keys: Sequence[Key]) -> Iterator[tuple[Key, Found]]:
    """What came of the searches, as they end."""
    # A thread each: two searches share two cores, and nothing depends on who else computes.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        runs = {pool.submit(search, key): key for key in keys}
        for done in as_completed(runs):
            yield runs[done], done.result()


def left_to_gain(best: Sequence[Sequence[float]], least: float, usual: float) -> list[list[float]]:
    """Quartiles over seeds of the best loss so far: 0 is the least known one, 1 where random search usually is after
    30 trials."""
    return ((np.percentile(best, [25, 50, 75], axis=0) - least) / (usual - least or 1.0)).tolist()


def draw(panels: Sequence[Panel], name: str) -> None:
    """Write a figure below docs/plots."""
    from scheduling_costs import install_matplotlib

    install_matplotlib()
    subprocess.run(
        [sys.executable, str(HERE / "draw_curves.py"), str(PLOTS / name)],
        input=json.dumps([asdict(panel) for panel in panels]),
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PEERS / "plotting")},
    )
