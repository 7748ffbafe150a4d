"""Encoding parts with every core, in their order, in processes that a hostile image may crash."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from datasets_service.images.manifest import Part, PlannedImage
from datasets_service.images.parts import EncodedPart, Recipe, encode_part

# Starting processes costs more than a small import takes.
PARALLEL_FROM_IMAGES = 2000


class PartEncoder:
    """Encodes parts of one recipe into files below `folder`, which is emptied first."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._recipe, self._folder = recipe, str(folder)

    def encode(self, parts: Iterable[Part], images: int) -> Iterator[EncodedPart]:
        """All `parts`, which hold so many images; SourceChangedError when one changed since it was planned."""
        if images <= PARALLEL_FROM_IMAGES:
            return self._here(parts)
        return self._in_processes(parts, len(os.sched_getaffinity(0)))

    def _here(self, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        for part in parts:
            yield encode_part(part, self._recipe, self._folder)

    def _in_processes(self, parts: Iterable[Part], processes: int) -> Iterator[EncodedPart]:
        pool = _pool(processes)
        ahead: deque[tuple[Part, Future[EncodedPart]]] = deque()
        try:
            for part in parts:
                ahead.append((part, pool.submit(encode_part, part, self._recipe, self._folder)))
                # As many as are being encoded wait, so that no process does.
                if len(ahead) <= 2 * processes:
                    continue
                try:
                    yield ahead[0][1].result()
                    ahead.popleft()
                except BrokenProcessPool:
                    yield from self._carefully(ahead)
                    pool.shutdown()
                    pool = _pool(processes)
            try:
                while ahead:
                    yield ahead[0][1].result()
                    ahead.popleft()
            except BrokenProcessPool:
                yield from self._carefully(ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    def _carefully(self, ahead: deque[tuple[Part, Future[EncodedPart]]]) -> Iterator[EncodedPart]:
        """One of these broke the pool: each again in a process of its own, without the images that crash it."""
        while ahead:
            part, _ = ahead.popleft()
            crashing = self._crashing(part, part.images)
            yield encode_part(part, self._recipe, self._folder, crashing)

    def _crashing(self, part: Part, images: Sequence[PlannedImage]) -> frozenset[int]:
        """Numbers of the images that end the process that decodes them."""
        with _pool(1) as pool:
            try:
                pool.submit(encode_part, replace(part, images=images), self._recipe, self._folder).result()
                return frozenset()
            except BrokenProcessPool:
                if len(images) == 1:
                    return frozenset({images[0].number})
        middle = len(images) // 2
        return self._crashing(part, images[:middle]) | self._crashing(part, images[middle:])


def _pool(processes: int) -> ProcessPoolExecutor:
    # Not forked: the reporter has a thread.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
