"""Read what an exec task says and what it left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from servicekit.errors import conflict, invalid

from scheduling_service.domain.job import Job
from scheduling_service.usecases.exec_ports import ExecLogs, ExecResults
from scheduling_service.usecases.find_exec import FindExec
from scheduling_service.usecases.ports import Jobs


class LogType(Enum):
    """What may be read, by its name in the API."""

    METRICS = "trainlog"
    OUTPUT = "outlog"
    ERRORS = "errlog"


@dataclass(frozen=True)
class LogRequest:
    """Which log; `tail_lines` 0 is all of it."""

    task_id: str
    type: str = ""
    follow: bool = False
    rank: int = 0
    tail_lines: int = 0

    def log_type(self) -> LogType:
        """400 listing the known ones."""
        for known in LogType:
            if (self.type or LogType.METRICS.value).lower() == known.value:
                return known
        raise invalid("logType", self.type, [known.value for known in LogType])


class ReadExecLog:
    """Callable with a request: its checks first, then the log in pieces."""

    def __init__(self, find: FindExec, jobs: Jobs, logs: ExecLogs) -> None:
        self._find, self._jobs, self._logs = find, jobs, logs

    async def __call__(self, request: LogRequest) -> AsyncIterator[bytes]:
        await self._find(request.task_id)
        kind = request.log_type()
        job = await self._job(request.task_id)
        if request.follow and kind is LogType.METRICS:
            raise invalid("follow", True, "false, unless logType is outlog or errlog")
        if request.tail_lines < 0:
            raise invalid("tailLines", request.tail_lines, "0 or more; 0 is the whole log")
        ranks = job.spec.ranks if job else 1
        if not 0 <= request.rank < ranks or (kind is LogType.METRICS and request.rank):
            allowed = "0: metrics are the first rank's" if kind is LogType.METRICS else f"0 to {ranks - 1}"
            raise invalid("rank", request.rank, allowed)
        if kind is LogType.METRICS:
            return self._logs.metrics(request.task_id, job, request.tail_lines)
        if job is None:
            return _nothing()
        stream = "out" if kind is LogType.OUTPUT else "err"
        if not request.follow:
            return self._logs.output(job, stream, request.rank, request.tail_lines)
        return self._logs.follow(job, stream, request.rank, request.tail_lines, lambda: self._job(request.task_id))

    async def _job(self, task_id: str) -> Job | None:
        found = await self._jobs.find([task_id])
        return found[0] if found else None


class ReadExecResult:
    """Callable with the id of a task: the zip of what it left. 409 while it has not ended."""

    def __init__(self, find: FindExec, jobs: Jobs, results: ExecResults) -> None:
        self._find, self._jobs, self._results = find, jobs, results
        # Packing takes a core and a disk.
        self._packing = asyncio.Semaphore(2)

    async def __call__(self, task_id: str) -> Path:
        await self._find(task_id)
        found = await self._jobs.find([task_id])
        if not found or not found[0].state.is_final:
            state = found[0].state.value if found else "SUBMITTED"
            raise conflict(f"exec task {task_id!r} has no result yet, it is {state}", reason="NOT_ENDED")
        async with self._packing:
            return await asyncio.to_thread(self._results.pack, task_id, is_elastic=found[0].spec.is_elastic)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
