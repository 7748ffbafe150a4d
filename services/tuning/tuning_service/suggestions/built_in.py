"""Built-in algorithms: one process thinks for all studies, and a second one while the first is busy.

So a study whose ask takes long holds up others only when two such are asked at once, and then not longer than one ask
may take. A study is asked where it was asked before, so that little has to be told. An idle process ends after a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from tuning_service.domain.evaluation import Answer, Problem
from tuning_service.domain.problem_form import evaluation_form, problem_form, read_answer
from tuning_service.suggestions.process import (
    MAX_ANSWER_BYTES,
    LineProcess,
    ProcessEndedError,
    WrongAnswerError,
    programs_environment,
)
from tuning_service.usecases.ports import History, SuggestionError

log = logging.getLogger(__name__)

PROCESSES = 2
ASK_SECONDS = 60.0
IDLE_SECONDS = 300.0
# Of its own, beside what libraries map: see RLIMIT_DATA.
MEMORY_BYTES = 4 * 1024**3
THINK = (sys.executable, "-P", "-m", "tuning_service.worker.suggest")
LOGGED_LINES = 100
# What answers shall take, a suggestion without its place, and a coordinate of that, all at most.
_ANSWER_BYTES, _NOTES_BYTES, _COORDINATE_BYTES = MAX_ANSWER_BYTES * 3 // 4, 1000, 26


class BuiltInSuggestions:
    """Asks built-in algorithms."""

    def __init__(
        self,
        *,
        processes: int = PROCESSES,
        ask_seconds: float = ASK_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        command: Sequence[str] = THINK,
    ) -> None:
        self._most, self._ask_seconds, self._idle_seconds = processes, ask_seconds, idle_seconds
        self._memory_bytes, self._command = memory_bytes, command
        self._thinkers: list[_Thinker] = []
        self._change = asyncio.Condition()
        self._asks: set[asyncio.Task[dict[str, Any]]] = set()
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        """Of the processes that think."""
        return [thinker.process.pid for thinker in self._thinkers if thinker.process]

    async def ask(self, study_uid: str, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        """As `usecases.ports.Suggestions` says. An ask that nobody waits for any more comes to its end all the same:
        its process goes on being good for the next. No more is asked for than one answer holds: who wants more asks
        again."""
        set_bytes = _NOTES_BYTES + _COORDINATE_BYTES * len(problem.space.dimensions)
        count = min(count, max(1, _ANSWER_BYTES // set_bytes))
        answer = await self._shielded({"study": study_uid, "algorithm": algorithm, "count": count}, problem, history)
        return read_answer(answer)

    async def _shielded(self, ask: dict[str, Any], problem: Problem, history: History) -> dict[str, Any]:
        question = asyncio.create_task(self._ask_twice({**ask, "problem": problem_form(problem)}, history))
        self._asks.add(question)
        question.add_done_callback(self._asks.discard)
        # Somebody who has gone looks at no exception.
        question.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(question)

    def forget(self, study_uid: str) -> None:
        """It has ended."""
        for thinker in self._thinkers:
            thinker.known.pop(study_uid, None)

    async def close(self) -> None:
        """End all processes."""
        for ask in self._asks:
            ask.cancel()
        await asyncio.gather(*self._asks, *self._endings, return_exceptions=True)
        for thinker in list(self._thinkers):
            await self._end(thinker)

    async def _ask_twice(self, ask: dict[str, Any], history: History) -> dict[str, Any]:
        algorithm = ask["algorithm"]
        for is_last in (False, True):
            thinker = await self._acquire(ask["study"])
            try:
                return await self._ask_once(thinker, ask, history)
            except ProcessEndedError as error:
                # Killed by somebody who needed its memory, perhaps; not by what it is asked, unless it happens again.
                log.warning("the process that thinks for %s %s: %s", algorithm, error, error.said)
                if is_last:
                    raise SuggestionError(f"algorithm {algorithm}: its process {error}, twice") from error
            except TimeoutError as error:
                # It ends its answers itself long before, on a machine that has time for it.
                text = f"algorithm {algorithm} did not answer within {self._ask_seconds:g} s"
                log.warning(text)
                if is_last:
                    raise SuggestionError(f"{text}, twice") from error
            finally:
                await self._release(thinker)
        raise AssertionError

    async def _ask_once(self, thinker: _Thinker, ask: dict[str, Any], history: History) -> dict[str, Any]:
        uid, algorithm = ask["study"], ask["algorithm"]
        if thinker.process is None:
            thinker.process = await self._start(thinker)
        since = thinker.known.pop(uid, 0)
        while True:
            trials, until, is_newest = await history.since(since)
            message = {**ask, "since": since, "until": until, "trials": [evaluation_form(trial) for trial in trials]}
            if not is_newest:
                # To be told, not asked yet.
                message["count"] = 0
            thinker.logged_lines, thinker.is_spoiled = 0, True
            try:
                answer = await thinker.process.ask(message, self._ask_seconds)
                thinker.is_spoiled = False
            except WrongAnswerError as error:
                raise SuggestionError(f"algorithm {algorithm} {error}") from error
            if "error" in answer:
                raise SuggestionError(f"algorithm {algorithm}: {answer['error']}")
            since = 0 if "need" in answer else until
            if "need" not in answer and is_newest:
                thinker.known[uid] = until
                return answer

    async def _start(self, thinker: _Thinker) -> LineProcess:
        return await LineProcess.start(
            [*self._command, str(os.getpid()), str(self._memory_bytes)],
            sink=thinker.log_output,
            environment=programs_environment(),
        )

    async def _acquire(self, study_uid: str) -> _Thinker:
        """A process for one ask: the one that knows the study, if it is free."""
        async with self._change:
            while True:
                free = [thinker for thinker in self._thinkers if not thinker.is_busy]
                knowing = [thinker for thinker in free if study_uid in thinker.known]
                if not free and len(self._thinkers) < self._most:
                    free = [_Thinker()]
                    self._thinkers += free
                if free:
                    thinker = (knowing or free)[0]
                    thinker.is_busy = True
                    if thinker.ending:
                        thinker.ending.cancel()
                    return thinker
                await self._change.wait()

    async def _release(self, thinker: _Thinker) -> None:
        is_alive = thinker.process is not None and thinker.process.is_running and not thinker.is_spoiled
        if is_alive:
            loop = asyncio.get_running_loop()
            thinker.ending = loop.call_later(self._idle_seconds, self._end_idle, thinker)
        else:
            await self._end(thinker)
        async with self._change:
            thinker.is_busy = False
            self._change.notify()

    def _end_idle(self, thinker: _Thinker) -> None:
        ending = asyncio.ensure_future(self._end(thinker))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        # Nobody shall be given it from now on.
        self._thinkers.remove(thinker)

    async def _end(self, thinker: _Thinker) -> None:
        if thinker in self._thinkers:
            self._thinkers.remove(thinker)
        if thinker.ending:
            thinker.ending.cancel()
        if thinker.process:
            await thinker.process.end()


class _Thinker:
    """A process, or the place of one that is being started. `known` has the newest change that it heard of each study;
    a `is_spoiled` one has not answered."""

    def __init__(self) -> None:
        self.process: LineProcess | None = None
        self.known: dict[str, int] = {}
        self.is_busy = self.is_spoiled = False
        self.ending: asyncio.TimerHandle | None = None
        self.logged_lines = 0

    async def log_output(self, chunk: bytes) -> None:
        """What libraries print, as far as somebody may want to read it."""
        for line in chunk.decode(errors="replace").splitlines():
            if self.logged_lines == LOGGED_LINES:
                log.warning("a process that thinks prints more than %d lines; the rest is left out", LOGGED_LINES)
            self.logged_lines += 1
            if self.logged_lines <= LOGGED_LINES:
                log.info("thinking: %s", line[:500])
