"""What ranks of exec tasks printed, and the log files that their programs wrote. Programs may put anything there."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from servicekit.files import BLOCK_BYTES, tail
from workerkit.spool import open_plain_below

from scheduling_service.domain.job import Job
from scheduling_service.storage.exec_folders import LOG
from scheduling_service.usecases.ports import RunDirectories

POLL_SECONDS = 0.2
# Sent while a program is silent, so that nobody on the way takes the stream for a dead one.
SILENCE_SECONDS = 60.0
# The program's own logs, the first that is there: of emetrics and of elog.
METRICS_FILES = ("evaluation-metrics.txt", "stdout")
_METRIC_LINE = re.compile(rb"Iteration \d{1,15}: tag |Timestamp \d{1,18}, Iteration |Total iterations: ")
_MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class _File:
    """A file of a program, somewhere below a folder of ours."""

    folder: Path
    path: Path

    def open(self) -> BinaryIO:
        """OSError when it is no plain file, or a link leads to it."""
        return open_plain_below(self.folder, self.path)


Look = Callable[[], Awaitable[Job | None]]


class DiskExecLogs:
    """`usecases.exec_ports.ExecLogs`; `execs` is where the folders of tasks lie."""

    def __init__(self, jobs: RunDirectories, execs: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self._jobs, self._execs, self._poll_seconds = jobs, execs, poll_seconds

    async def output(self, job: Job, stream: str, rank: int, tail_lines: int) -> AsyncIterator[bytes]:
        files = self._files(job, stream, rank)
        if tail_lines:
            yield await asyncio.to_thread(_tail, files, tail_lines)
            return
        for file in files:
            async for chunk in _chunks(file):
                yield chunk

    async def follow(self, job: Job, stream: str, rank: int, tail_lines: int, look: Look) -> AsyncIterator[bytes]:
        """As `output`, and what comes, until the job has ended or is gone; an empty chunk in a long silence."""
        number = 1
        offset = 0
        if tail_lines:
            files = self._files(job, stream, rank)
            number = max(1, job.attempt)
            # What comes between these two lines is sent twice rather than never.
            offset = await asyncio.to_thread(_size, self._file(job.id, number, stream, rank))
            yield await asyncio.to_thread(_tail, files, tail_lines)
        silent = 0.0
        while True:
            # Looked at before the rest is read: what a job that has ended wrote is there.
            latest = await look()
            async for chunk in _chunks(self._file(job.id, number, stream, rank), offset):
                offset += len(chunk)
                silent = 0.0
                yield chunk
            if latest is not None and number < latest.attempt:
                number, offset = number + 1, 0
                continue
            if latest is None or latest.state.is_final:
                return
            await asyncio.sleep(self._poll_seconds)
            silent += self._poll_seconds
            if silent >= SILENCE_SECONDS:
                silent = 0.0
                yield b""

    async def metrics(self, task_id: str, job: Job | None, tail_lines: int) -> AsyncIterator[bytes]:
        for name in METRICS_FILES:
            folder = self._execs / task_id
            file = _File(folder, folder / LOG / name)
            if await asyncio.to_thread(_size, file):
                if tail_lines:
                    yield await asyncio.to_thread(_tail, [file], tail_lines)
                    return
                async for chunk in _chunks(file):
                    yield chunk
                return
        files = self._files(job, "out", 0) if job is not None else []
        lines = _metric_lines(files)
        if tail_lines:
            yield await asyncio.to_thread(lambda: b"".join(list(lines)[-tail_lines:]))
            return
        while batch := await asyncio.to_thread(_batch, lines):
            yield batch

    def _files(self, job: Job, stream: str, rank: int) -> list[_File]:
        return [self._file(job.id, number, stream, rank) for number in range(1, job.attempt + 1)]

    def _file(self, job_id: str, attempt: int, stream: str, rank: int) -> _File:
        folder = self._jobs.of(job_id)
        return _File(folder, folder / f"attempt-{attempt}" / f"rank-{rank}.{stream}")


async def _chunks(source: _File, offset: int = 0) -> AsyncIterator[bytes]:
    """What is in a file from `offset` on; nothing where there is no plain file."""
    try:
        file = await asyncio.to_thread(source.open)
    except OSError:
        return
    with file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, BLOCK_BYTES):
            yield data


def _size(source: _File) -> int:
    try:
        with source.open() as file:
            return file.seek(0, os.SEEK_END)
    except OSError:
        return 0


def _tail(sources: Sequence[_File], lines: int) -> bytes:
    """The last lines of files that follow each other."""
    found: list[bytes] = []
    for source in reversed(sources):
        try:
            with source.open() as file:
                found = [*tail(file, lines - len(found)), *found]
        except OSError:
            continue
        if len(found) >= lines:
            break
    return b"".join(found)


def _metric_lines(sources: Sequence[_File]) -> Iterator[bytes]:
    for source in sources:
        try:
            file = source.open()
        except OSError:
            continue
        with file:
            # A line without end would be held whole.
            while line := file.readline(_MAX_LINE_BYTES):
                if _METRIC_LINE.search(line):
                    yield line


def _batch(lines: Iterator[bytes]) -> bytes:
    found: list[bytes] = []
    size = 0
    for line in lines:
        found.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            break
    return b"".join(found)
