"""A process that answers each line of JSON with one, and whose life is in our hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_ENDING_SECONDS, LAST_WORDS_SECONDS = 10.0, 2.0
CHUNK_BYTES = 64 * 1024
# What is printed beyond so much between two asks is taken slowly: it costs its author time, and us little.
FREE_BYTES, PAUSE_SECONDS = 1024 * 1024, 0.005
KEPT_LINES, LINE_CHARACTERS = 20, 500
# From so many trials on an ask is put into words beside the event loop.
MANY_TRIALS = 2000
# Neither passwords and settings of the platform nor those of its database.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")

# More threads than cores would only wait for each other.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Sink = Callable[[bytes], Awaitable[None]]


class ProcessEndedError(Exception):
    """It ended before it answered. `code` is negative for the signal that ended it; `said` what it printed last."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"was ended by {signal_name(-code)}" if code < 0 else f"ended itself with exit code {code}")
        self.code, self.said = code, said


class WrongAnswerError(Exception):
    """What it answered is no line of JSON."""


def clean_environment(environ: Mapping[str, str], *, more: Sequence[str] = ()) -> dict[str, str]:
    """What a process that runs others' code sees of ours."""
    return {name: environ[name] for name in (*INHERITED, *more) if name in environ}


def programs_environment() -> dict[str, str]:
    """What processes of our own programs see."""
    return {**clean_environment(os.environ, more=("PYTHONPATH",)), **_ONE_THREAD}


class LineProcess:
    """One process in a session of its own, asked by one at a time.

    What it prints goes to `sink`, at most so much a second; its last lines are kept.
    """

    def __init__(self, process: asyncio.subprocess.Process, sink: Sink) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._torn = b""
        self._read_bytes = 0
        self._drain = asyncio.create_task(self._take_output(sink))

    @classmethod
    async def start(
        cls, command: Sequence[str], *, sink: Sink, environment: Mapping[str, str], cwd: Path | None = None
    ) -> LineProcess:
        """Start `command`; OSError when it cannot be."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_ANSWER_BYTES,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        return cls(process, sink)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    @property
    def said(self) -> str:
        """The last lines that it printed."""
        lines = [*self._lines, self._torn[:LINE_CHARACTERS].decode(errors="replace").rstrip()]
        return "\n".join(filter(None, lines))

    async def ask(self, message: Mapping[str, Any], limit_seconds: float) -> dict[str, Any]:
        """Its answer. ProcessEndedError, WrongAnswerError, or TimeoutError, after each of which it has to be ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._read_bytes = 0
        many = len(message.get("trials", ())) > MANY_TRIALS
        line = await asyncio.to_thread(_line, message) if many else _line(message)
        async with asyncio.timeout(limit_seconds):
            # uvloop says RuntimeError of a pipe that it has found closed.
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._process.stdin.write(line)
                await self._process.stdin.drain()
            try:
                answer = await self._process.stdout.readline()
            except ValueError as error:
                raise WrongAnswerError(f"answered with more than {MAX_ANSWER_BYTES} bytes") from error
            if not answer.endswith(b"\n"):
                code = await self._process.wait()
                # What it said last is still on its way.
                await asyncio.wait({self._drain}, timeout=LAST_WORDS_SECONDS)
                raise ProcessEndedError(code, self.said)
        try:
            read = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise WrongAnswerError("answered with something that is no JSON") from error
        if not isinstance(read, dict):
            raise WrongAnswerError("answered with something that is no object")
        return read

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it, kill it if that does not help, and wait until it has gone."""
        for attempt in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, attempt)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MAX_ENDING_SECONDS):
                    await self._process.wait()
                break
        await asyncio.wait({self._drain}, timeout=LAST_WORDS_SECONDS)
        self._drain.cancel()
        await asyncio.gather(self._drain, return_exceptions=True)
        # Its pipes, which somebody else may hold open.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _take_output(self, sink: Sink) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(CHUNK_BYTES):
            *lines, torn = (self._torn + chunk).split(b"\n")
            self._torn = torn[-CHUNK_BYTES:]
            self._lines += [line[:LINE_CHARACTERS].decode(errors="replace").rstrip() for line in lines[-KEPT_LINES:]]
            self._read_bytes += len(chunk)
            with contextlib.suppress(OSError):
                await sink(chunk)
            if self._read_bytes > FREE_BYTES:
                await asyncio.sleep(PAUSE_SECONDS)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
