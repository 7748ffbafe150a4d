"""Many tasks in one stream, answered as they end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from servicekit.errors import ServiceError

from inference_service.kernels.domain.models import KernelModel
from inference_service.kernels.usecases.ask_kernels import AskKernels

log = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error"
# Tasks of one stream that the pool has at once, unless its kernels take more in two batches; as many wait here.
LEAST_AT_ONCE = 32


@dataclass(frozen=True)
class StreamedTask:
    """One task; an empty name means the model of the stream's first task."""

    id: str
    input: str
    name: str = ""
    session_id: str = ""


@dataclass(frozen=True)
class StreamedAnswer:
    """Its output, or why there is none."""

    id: str
    output: str = ""
    error: str = ""


class StreamKernelTasks:
    """Reads no more than it has room for: a client that is faster than the kernels waits, or, where the model's profile
    says `stream_discard_slow_tasks`, loses the oldest tasks that wait."""

    def __init__(self, ask: AskKernels) -> None:
        self._ask = ask

    async def __call__(self, tasks: AsyncIterator[StreamedTask]) -> AsyncIterator[StreamedAnswer]:
        """Errors of the first task's model are errors of the stream; those of others are answers."""
        try:
            first = await anext(tasks)
        except StopAsyncIteration:
            return
        stream = _Stream(self._ask, await self._ask.model(first.name))
        reading = asyncio.create_task(stream.read(first, tasks))
        try:
            while (answer := await stream.answers.get()) is not None:
                stream.gone.release()
                yield answer
            # What the client's side raised.
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, *stream.end(), return_exceptions=True)


class _Stream:
    """What is under way in one stream. `answers` ends with None."""

    def __init__(self, ask: AskKernels, model: KernelModel) -> None:
        self._ask, self._model = ask, model
        policy = model.profile.policy
        self._at_once = max(LEAST_AT_ONCE, 2 * policy.task_batch_size)
        self._discards = policy.stream_discard_slow_tasks
        self._waiting: deque[StreamedTask] = deque()
        self.running: set[asyncio.Task[None]] = set()
        self.answers: asyncio.Queue[StreamedAnswer | None] = asyncio.Queue()
        # Answers that the client has not taken count as tasks: it must not make us keep them all.
        self.gone = asyncio.Semaphore(2 * self._at_once)

    async def read(self, first: StreamedTask, tasks: AsyncIterator[StreamedTask]) -> None:
        try:
            await self._accept(first)
            async for task in tasks:
                await self._accept(task)
            while self.running:
                await asyncio.wait(self.running)
        finally:
            self.answers.put_nowait(None)

    def end(self) -> set[asyncio.Task[None]]:
        """Drop what waits and what runs; what is still ending."""
        self._waiting.clear()
        for task in self.running:
            task.cancel()
        return set(self.running)

    async def _accept(self, task: StreamedTask) -> None:
        if self._discards and self.gone.locked() and self._waiting:
            slow = self._waiting.popleft()
            self.answers.put_nowait(
                StreamedAnswer(slow.id, error="discarded: newer tasks came before a kernel had room")
            )
        await self.gone.acquire()
        self._waiting.append(task)
        self._begin()

    def _begin(self) -> None:
        while self._waiting and len(self.running) < self._at_once:
            work = asyncio.create_task(self._answer(self._waiting.popleft()))
            self.running.add(work)
            work.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Task[None]) -> None:
        self.running.discard(work)
        self._begin()

    async def _answer(self, task: StreamedTask) -> None:
        try:
            # The model is asked for anew: it may have been stopped since.
            name = task.name or self._model.name
            output = await self._ask(name, task.input, task_id=task.id, session_id=task.session_id)
            answer = StreamedAnswer(task.id, output)
        except ServiceError as error:
            answer = StreamedAnswer(task.id, error=error.message)
        except Exception:
            # Without an answer its place would never be free again.
            log.exception("a task of a stream has no answer")
            answer = StreamedAnswer(task.id, error=INTERNAL_ERROR)
        self.answers.put_nowait(answer)
