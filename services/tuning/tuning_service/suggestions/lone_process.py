"""Processes that live for one question each, one after the other: nobody whom searches wait for has to answer it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from servicekit.errors import Code, ServiceError

from tuning_service.suggestions.process import LineProcess, ProcessEndedError, WrongAnswerError, programs_environment

log = logging.getLogger(__name__)

Ask = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class LoneProcesses:
    """Runs `command` with the pid of this process and further words; each of its answers may take `limit_seconds`."""

    def __init__(self, command: Sequence[str], limit_seconds: float) -> None:
        self._command, self._limit_seconds = command, limit_seconds
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def asked_for(self, wanted: str, *words: str) -> AsyncIterator[Ask]:
        """What asks a new process. 503 saying that what is `wanted` cannot be found when it ends, takes too long or
        answers nonsense."""
        async with self._turn:
            process = await LineProcess.start(
                [*self._command, str(os.getpid()), *words], sink=_log, environment=programs_environment()
            )
            try:
                yield lambda message: process.ask(message, self._limit_seconds)
            except (TimeoutError, ProcessEndedError, WrongAnswerError) as error:
                reason = str(error) or f"no answer within {self._limit_seconds:g} s"
                raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", f"{wanted} cannot be found: {reason}") from error
            finally:
                await process.end()


async def _log(chunk: bytes) -> None:
    log.warning("a process that was asked one question says: %s", chunk.decode(errors="replace")[:1000])
