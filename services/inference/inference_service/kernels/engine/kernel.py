"""One kernel of a model: what it has in hand, what it answers, and how it came to its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from inference_service.kernels.domain.pools import KernelFailedError, KernelLaunch, KernelStatistics
from inference_service.kernels.engine.limits import PoolLimits
from inference_service.kernels.engine.process import CannotStartError, JunkError, KernelProcess
from inference_service.kernels.engine.task_queue import Ticket

NO_OUTPUT = "the kernel set no output"
MAX_WORDS = 2000
# For what is to be done after the last words.
FAILED_SECONDS = 2.0


@dataclass(eq=False)
class Batch:
    """Tasks that were given together. `tickets` are those without an answer; the first batch is worked on `since`."""

    tickets: dict[int, Ticket]
    was_alone: bool
    since: float = 0.0
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True)
class Ending:
    """Why a kernel ended. `is_passing` is trouble of the machine; `is_final` what will be there the next time, too."""

    words: str
    is_final: bool = False
    is_passing: bool = False


class Kernel:
    """From its start to its end; `on_change` is called when it may have room or has nothing to do."""

    def __init__(
        self, number: int, host: str, gpus: str, launch: KernelLaunch, limits: PoolLimits, on_change: Callable[[], None]
    ) -> None:
        self.number, self.gpus = number, gpus
        self._host, self._launch, self._limits, self._on_change = host, launch, limits, on_change
        self._loop = asyncio.get_running_loop()
        self._process: KernelProcess | None = None
        self._batches: deque[Batch] = deque()
        self._words = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._total = self._finished = self._failed = 0
        self.is_ready = self.is_ending = self.has_ended = self.was_late = False
        self.idle_since = self._loop.time()
        self._ending_since = 0.0

    @property
    def pid(self) -> int:
        """Of its process; 0 before it has one."""
        return self._process.pid if self._process else 0

    @property
    def is_busy(self) -> bool:
        """Whether it has tasks in hand."""
        return bool(self._batches)

    @property
    def has_worked(self) -> bool:
        """Whether it was ever given a task."""
        return self._total > 0

    @property
    def room(self) -> int:
        """How many batches it takes now."""
        if not self.is_ready or self.is_ending or self.has_ended or self._words:
            return 0
        return max(0, self._launch.policy.task_pipe_size - len(self._batches))

    @property
    def running(self) -> int:
        """How many tasks it has in hand."""
        return sum(len(batch.tickets) for batch in self._batches)

    def statistics(self) -> KernelStatistics:
        """Of it now."""
        if self.has_ended:
            status = "ended"
        elif self.is_ending:
            status = "ending"
        elif not self.is_ready:
            status = "starting"
        else:
            status = "busy" if self.is_busy else "idle"
        identity = f"{self._launch.name}-{self.number}"
        running = self.running
        return KernelStatistics(identity, self._host, status, self._total, running, self._finished, self._failed)

    def give(self, tickets: Iterable[Ticket]) -> None:
        """A batch."""
        batch = Batch({ticket.key: ticket for ticket in tickets}, False)
        batch.was_alone = len(batch.tickets) == 1
        self._total += len(batch.tickets)
        self._batches.append(batch)
        if len(self._batches) == 1:
            self._begin()
        assert self._process is not None
        # Keys and names are JSON, inputs are not: however large they are, they cost a copy.
        inputs = [ticket.task.input.encode(errors="replace") for ticket in batch.tickets.values()]
        tasks = [_header(self._launch.uid, *each) for each in zip(batch.tickets.values(), inputs, strict=True)]
        self._process.send({"tasks": tasks}, inputs)

    async def run(self, start: Callable[[Kernel], Awaitable[KernelProcess]]) -> Ending:
        """Start it and take its answers until it has ended; why it did. What it left is in `leftovers`."""
        try:
            process = self._process = await start(self)
        except CannotStartError as error:
            return Ending(str(error), is_final=error.is_final)
        except OSError as error:
            return Ending(f"its process cannot be started now: {error}", is_passing=True)
        finally:
            self.has_ended = self._process is None
        if self.is_ending:
            process.kill("it was not needed any more")
        try:
            await self._serve(process)
        except JunkError as error:
            process.kill(str(error))
        why = await process.end()
        self.has_ended = True
        for timer in (self._deadline, *(batch.timer for batch in self._batches)):
            if timer is not None:
                timer.cancel()
        words = self._words or why
        if process.said and not self._words:
            words = f"{words}; it printed last: {process.said}"
        return Ending(words[:MAX_WORDS])

    def retire(self) -> None:
        """Have it end: at once when it is not ready, else after what it has in hand."""
        if self.is_ending:
            return
        self.is_ending, self._ending_since = True, self._loop.time()
        if not self.is_ready and self._process is not None:
            self._process.kill("it was not needed any more")
        self._shut_down_when_idle()

    def end_overdue(self, now: float, seconds: float) -> None:
        """End it at once when it has been told for so long to end after what it has in hand."""
        if self.is_ending and self.is_busy and now - self._ending_since >= seconds:
            self.kill(f"others need its place, and it had {seconds:g} s to end what it did")

    def kill(self, why: str) -> None:
        """End it at once."""
        self.is_ending = True
        if self._process is not None:
            self._process.kill(why)

    def give_up_abandoned(self, now: float, seconds: float) -> None:
        """End it when nobody has waited for what it does for so long."""
        if self._batches:
            batch = self._batches[0]
            is_abandoned = all(ticket.answer.done() for ticket in batch.tickets.values())
            if is_abandoned and batch.tickets and now - batch.since >= seconds:
                self.kill("nobody waits any more for what it does")

    def leftovers(self) -> tuple[list[Ticket], list[Ticket], bool]:
        """Tickets of the batch that it worked on, of those behind it, and whether the first was a single task."""
        first = self._batches[0] if self._batches else Batch({}, False)
        behind = [ticket for batch in list(self._batches)[1:] for ticket in batch.tickets.values()]
        self._failed += sum(not ticket.answer.done() for ticket in first.tickets.values())
        self._batches.clear()
        return list(first.tickets.values()), behind, first.was_alone

    async def _serve(self, process: KernelProcess) -> None:
        launch = self._launch
        process.send(
            {
                "start": {
                    "kernel": f"{launch.name}-{self.number}",
                    "instance": launch.uid,
                    "description": launch.description,
                    "output_bytes": self._limits.output_bytes,
                }
            }
        )
        seconds = launch.policy.connection_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                while not self.is_ready:
                    if (message := await process.receive()) is None:
                        return
                    self._take(message)
        except TimeoutError:
            process.kill(f"it was not ready within {seconds:g} s")
            return
        while (message := await process.receive()) is not None:
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        # Each message takes it further: one that only talks would keep all others waiting.
        if "failed" in message and not self._words and self._process and not self._process.ending:
            self._words = str(message["failed"])[:MAX_WORDS] or "it failed without a word"
            self._end_within(FAILED_SECONDS, "it did not end though it said that it failed")
            return
        if message.get("ready") is True and not self.is_ready:
            self.is_ready, self.idle_since = True, self._loop.time()
            self._shut_down_when_idle()
            self._on_change()
            return
        answers = message.get("answers")
        is_done = message.get("done") is True
        if not isinstance(answers, list) or not self._batches or not (answers or is_done):
            raise JunkError("it sent something that is no answer")
        batch = self._batches[0]
        for answer in answers:
            self._answer(batch, answer)
        if is_done:
            for ticket in batch.tickets.values():
                self._fail(ticket, NO_OUTPUT)
            self._next()

    def _answer(self, batch: Batch, answer: Any) -> None:
        key = answer.get("key") if isinstance(answer, dict) else None
        ticket = batch.tickets.pop(key, None) if isinstance(key, int) else None
        if ticket is None:
            raise JunkError("it answered a task that it does not have")
        output = answer.get("output")
        if not isinstance(output, str):
            self._fail(ticket, str(answer.get("error") or NO_OUTPUT)[:MAX_WORDS])
        elif not _is_sendable(output):
            self._fail(ticket, "its output is no text: it has characters that UTF-8 does not know")
        else:
            self._finished += 1
            ticket.succeed(output)

    def _fail(self, ticket: Ticket, words: str) -> None:
        self._failed += 1
        ticket.fail(KernelFailedError(words))

    def _begin(self) -> None:
        """Its first batch is worked on from now."""
        batch, seconds = self._batches[0], self._launch.policy.task_execution_timeout_seconds
        batch.since = self._loop.time()
        if seconds > 0:
            batch.timer = self._loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: float) -> None:
        self.was_late = True
        self.kill(f"its batch took longer than {seconds:g} s")

    def _next(self) -> None:
        batch = self._batches.popleft()
        if batch.timer is not None:
            batch.timer.cancel()
        if self._batches:
            self._begin()
        else:
            self.idle_since = self._loop.time()
        self._shut_down_when_idle()
        self._on_change()

    def _shut_down_when_idle(self) -> None:
        if self.is_ending and self.is_ready and not self._batches and self._deadline is None and self._process:
            self._process.send({"shutdown": True})
            seconds = self._limits.shutdown_seconds
            self._end_within(seconds, f"it did not end within {seconds:g} s when it was told to")

    def _end_within(self, seconds: float, why: str) -> None:
        assert self._process is not None
        if self._deadline is None:
            self._deadline = self._loop.call_later(seconds, self._process.kill, why)


def _header(uid: str, ticket: Ticket, text: bytes) -> dict[str, Any]:
    task = ticket.task
    return {
        "key": ticket.key,
        "id": task.id,
        "uuid": f"{uid}-{ticket.key}",
        "session": task.session_id,
        "job": task.job_id or task.session_id,
        "extension": task.input_extension,
        "bytes": len(text),
    }


def _is_sendable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
