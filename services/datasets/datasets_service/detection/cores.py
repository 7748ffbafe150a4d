"""A function over a million arguments on every core, in order and with bounded memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TypeVar

PARALLEL_FROM = 1000
CHUNK = 32

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cores:
    """Processes that are started once there is enough to do, and end with this one, also when it is killed."""

    def __init__(self) -> None:
        self._processes = len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Cores:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def map(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
    ) -> Iterator[tuple[Task, Result]]:
        """Every task with its result, in order; `count` is about how many there are."""
        if count < PARALLEL_FROM or self._processes == 1:
            return ((task, function(task)) for task in tasks)
        return self._map_in_processes(function, iter(tasks))

    def _map_in_processes(
        self, function: Callable[[Task], Result], tasks: Iterator[Task]
    ) -> Iterator[tuple[Task, Result]]:
        pool = self._started()
        ahead: deque[tuple[list[Task], Future[list[Result]]]] = deque()
        while chunk := list(islice(tasks, CHUNK)):
            ahead.append((chunk, pool.submit(_apply, function, chunk)))
            # As many wait as are at work, so that no process does.
            if len(ahead) > 2 * self._processes:
                done, results = ahead.popleft()
                yield from zip(done, results.result(), strict=True)
        while ahead:
            done, results = ahead.popleft()
            yield from zip(done, results.result(), strict=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: the reporter has a thread. A process that crashes breaks the pool instead of hanging it.
            self._pool = ProcessPoolExecutor(
                self._processes, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent
            )
            self._stack.callback(self._pool.shutdown, cancel_futures=True)
        return self._pool


def _apply(function: Callable[[Task], Result], tasks: list[Task]) -> list[Result]:
    return [function(task) for task in tasks]


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
