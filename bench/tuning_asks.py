"""What the next trial costs to think out: after 1,000 trials, and after 50,000."""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from report import Row, announce

PENDING, ASKS = 4, 21
PROMISED_MS, PROMISED_MB = 100.0, 20.0


def measure_asks() -> list[Row]:
    """Rows of the section `quality`. Each in a process of its own, as studies have."""
    rows, kept = [], {}
    for name in ("Random", "Tpe", "Bayesian"):
        announce(f"1,000 trials of {name}, asked for one by one")
        first, last, kept[name] = _measured(name, 1_000, 0)
        rows.append(
            Row(
                f"{name}: an ask after 1,000 trials, 6 mixed dimensions, {PENDING} pending, median of {ASKS}",
                f"{last:.2f} ms",
                f"{first:.2f} ms after 100",
                f"{last / first:.2f}",
                f"at most {PROMISED_MS:.0f} ms",
                last <= PROMISED_MS,
            )
        )
    for name in ("Random", "Tpe", "Bayesian"):
        announce(f"asks of {name} after 50,000 trials")
        _, last, megabytes = _measured(name, 50_000, 50_000 - ASKS)
        rows.append(
            Row(
                f"{name}: an ask after 50,000 trials, median of {ASKS}",
                f"{last:.2f} ms, {megabytes - kept[name]:.0f} MB more than after 1,000",
                "",
                "",
                f"at most {PROMISED_MS:.0f} ms, {PROMISED_MB:.0f} MB more",
                last <= PROMISED_MS and megabytes - kept[name] <= PROMISED_MB,
            )
        )
    return rows


def _measured(name: str, trials: int, drawn: int) -> tuple[float, float, float]:
    words = [sys.executable, str(Path(__file__).resolve()), name, str(trials), str(drawn)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    first, last, megabytes = map(float, subprocess.check_output(words, text=True, env=environment).split())
    return first, last, megabytes


def _grow(name: str, trials: int, drawn: int) -> None:
    """Prints the median milliseconds of asks around trial 100 and at the end, and by how many megabytes memory grew.

    The first `drawn` trials come from random search, all others from asks one by one; trials end in any order.
    """
    from tuning_service.algorithms.registry import find, make_algorithm, read_settings
    from tuning_service.domain.evaluation import Evaluation, Problem, TrialState
    from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Space

    space = Space(
        [
            Continuous("rate", -5.0, 0.0, 10.0),
            Continuous("momentum", 0.0, 1.0),
            Levels("width", DataType.INT, range(8, 520)),
            Levels("batch", DataType.INT, [16, 32, 64, 128]),
            Choice("solver", DataType.STR, ["Adam", "SGD", "Lion"]),
            Choice("norm", DataType.STR, ["batch", "layer"]),
        ]
    )
    chances = random.Random(0)

    def ended(trial: Evaluation) -> Evaluation:
        pairs = zip(trial.place, space.dimensions, strict=True)
        loss = sum((place / (dimension.size or 1) - 0.3) ** 2 for place, dimension in pairs) + chances.gauss(0, 0.01)
        return Evaluation(trial.number, trial.place, TrialState.FINISHED, (loss,), trial.notes)

    def made(of: str) -> tuple[str, Problem]:
        found = find(of)
        assert found is not None
        return of, Problem(space, read_settings(found[1], {}), 1, parallel=PENDING)

    known = make_algorithm(*made("Random")).ask([], drawn).suggestions
    history = [ended(Evaluation(at, each.place, TrialState.PENDING)) for at, each in enumerate(known, 1)]
    gc.collect()
    before = psutil.Process().memory_info().rss
    algorithm = make_algorithm(*made(name))
    pending: list[int] = []
    milliseconds: list[float] = []
    while len(history) < trials:
        began = time.perf_counter()
        [suggestion] = algorithm.ask(history, 1).suggestions
        milliseconds.append(1e3 * (time.perf_counter() - began))
        pending.append(len(history))
        history.append(Evaluation(len(history) + 1, suggestion.place, TrialState.PENDING, None, suggestion.notes))
        if len(pending) > PENDING:
            index = pending.pop(chances.randrange(PENDING))
            history[index] = ended(history[index])
    kept = (psutil.Process().memory_info().rss - before) / 2**20
    print(
        statistics.median(milliseconds[100 - ASKS : 100] or milliseconds), statistics.median(milliseconds[-ASKS:]), kept
    )


if __name__ == "__main__":
    _grow(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
