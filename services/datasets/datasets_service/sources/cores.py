"""A function over a million arguments on every core, in order, with bounded memory; a hostile one may crash it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

# Starting processes costs more than so few tasks take.
PARALLEL_FROM = 1000
CHUNK = 32

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cores:
    """Processes that are started once there is enough to do, and end with this one, also when it is killed.

    When `apart`, nothing is done in this process: an earlier attempt may have been crashed by a task.
    """

    def __init__(self, *, apart: bool = False) -> None:
        self._apart = apart
        self._processes = len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Cores:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        count: int,
        crashed: Result,
        *,
        chunk: int | None = None,
    ) -> Iterator[tuple[Task, Result]]:
        """Every task with its result, in order; `crashed` is the result of a task that ended its process.

        `count` is about how many images (or the like) the tasks hold: a few are done in this process. So many tasks as
        `chunk` says are sent to a process at once.
        """
        if count < PARALLEL_FROM and not self._apart:
            return ((task, function(task)) for task in tasks)
        return self._map_in_processes(function, iter(tasks), crashed, chunk or CHUNK)

    def _map_in_processes(
        self, function: Callable[[Task], Result], tasks: Iterator[Task], crashed: Result, size: int
    ) -> Iterator[tuple[Task, Result]]:
        ahead: deque[tuple[list[Task], Future[list[Result]]]] = deque()
        is_last = False
        while ahead or not is_last:
            # As many wait as are at work, so that no process does.
            while len(ahead) <= 2 * self._processes and not is_last:
                chunk = list(islice(tasks, size))
                is_last = len(chunk) < size
                ahead.append((chunk, self._submit(function, chunk)))
            try:
                done, results = ahead[0][0], ahead[0][1].result()
                ahead.popleft()
                yield from zip(done, results, strict=True)
            except BrokenProcessPool:
                # One of these broke it: each again, apart from the others.
                self._stop()
                while ahead:
                    yield from _carefully(function, ahead.popleft()[0], crashed)

    def _submit(self, function: Callable[[Task], Result], chunk: list[Task]) -> Future[list[Result]]:
        try:
            return self._started().submit(_apply, function, chunk)
        except BrokenProcessPool as error:
            # A chunk that is not waited for yet broke it: this is told where results are waited for.
            broken: Future[list[Result]] = Future()
            broken.set_exception(error)
            return broken

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = _pool(self._processes)
        return self._pool

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _carefully(function: Callable[[Task], Result], tasks: list[Task], crashed: Result) -> Iterator[tuple[Task, Result]]:
    """In a process of their own; halves until it is known which of them end it."""
    try:
        with _pool(1) as pool:
            results = pool.submit(_apply, function, tasks).result()
    except BrokenProcessPool:
        if len(tasks) == 1:
            yield tasks[0], crashed
            return
        middle = len(tasks) // 2
        yield from _carefully(function, tasks[:middle], crashed)
        yield from _carefully(function, tasks[middle:], crashed)
        return
    yield from zip(tasks, results, strict=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not forked: the reporter has a thread.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent)


def _apply(function: Callable[[Task], Result], tasks: list[Task]) -> list[Result]:
    return [function(task) for task in tasks]


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
