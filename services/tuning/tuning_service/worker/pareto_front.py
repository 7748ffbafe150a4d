"""`python -m tuning_service.worker.pareto_front PARENT`: finds fronts of more than two objectives.

Reads a line of JSON for each question and answers with one; `most` is how many are wanted:

    {"trials": [[number, [loss, ...]], ...], "most": n}
    {"front": [number, ...]}

It ends with its input, and with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]
PIVOTS = 100

_PR_SET_PDEATHSIG = 1


def front(losses: Sequence[tuple[int, Sequence[float]]], most: int) -> list[int]:
    """The numbers of the first `most`, by their losses, that no other one beats, that is, is at least as good as in
    everything and better than in something. Of equal ones all are kept."""
    if not losses or most < 1:
        return []
    numbers = np.array([number for number, _ in losses])
    values = np.array([row for _, row in losses], dtype=float)
    is_left = _without_the_worst(values)
    numbers, values = numbers[is_left], values[is_left]
    order = np.lexsort((numbers, *values.T[::-1]))
    numbers, values = numbers[order], values[order]
    kept = np.empty((values.shape[1], min(most, len(values))))
    found: list[int] = []
    for number, row in zip(numbers.tolist(), values, strict=True):
        if _is_beaten(row, kept[:, : len(found)]):
            continue
        kept[:, len(found)] = row
        found.append(number)
        if len(found) == most:
            break
    return found


def _without_the_worst(values: Row) -> NDArray[np.intp]:
    """Where those are that none of the best by the sum of their places beats: mostly few are left."""
    places = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")
    left = np.argsort(places.sum(axis=1), kind="stable")
    for index in range(PIVOTS):
        if index >= len(left):
            break
        one, others = values[left[index]], values[left]
        is_beaten = np.ones(len(left), dtype=bool)
        for mine, its in zip(one, others.T, strict=True):
            is_beaten &= mine <= its
        is_beaten &= np.any(one < others, axis=1)
        left = left[~is_beaten]
    return left


def _is_beaten(row: Row, others: Row) -> bool:
    """By one of those before it, which are no worse in the first loss; `others` has a row a loss."""
    left = np.flatnonzero(others[1] <= row[1])
    for one, several in zip(row[2:], others[2:], strict=True):
        left = left[several[left] <= one]
    return (
        any(bool(np.any(several[left] < one)) for one, several in zip(row, others, strict=True)) if len(left) else False
    )


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
    # A service that is interrupted ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        answer = {"front": front(question["trials"], question["most"])}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
