"""Tasks that wait for a kernel, in order; those that a kernel gave back stand in front."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from inference_service.kernels.domain.pools import KernelTask, QueueFullError


@dataclass(eq=False)
class Ticket:
    """A task and its caller, who has gone when `answer` is done. `crashes` counts kernels that ended over it;
    `is_alone`: it is given to a kernel without neighbours."""

    key: int
    task: KernelTask
    size: int
    since: float
    answer: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    crashes: int = 0
    is_alone: bool = False

    def succeed(self, output: str) -> None:
        """Tell the caller, if there is one."""
        if not self.answer.done():
            self.answer.set_result(output)

    def fail(self, error: Exception) -> None:
        """Tell the caller, if there is one."""
        if not self.answer.done():
            self.answer.set_exception(error)


class TaskQueue:
    """The tasks of one model. What waits, and what kernels have in hand, counts against the limits."""

    def __init__(self, most_tasks: int, most_bytes: int) -> None:
        self._most_tasks, self._most_bytes = most_tasks, most_bytes
        self._keys = itertools.count(1)
        self._returned: dict[int, Ticket] = {}
        self._waiting: dict[int, Ticket] = {}
        self._accepted: dict[int, Ticket] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._returned) + len(self._waiting)

    @property
    def accepted(self) -> Iterable[Ticket]:
        """All that have no answer yet and somebody who waits for it."""
        return self._accepted.values()

    @property
    def has_callers(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._accepted)

    def oldest_seconds(self, now: float) -> float:
        """Since when the first one waits; 0 when none does."""
        first = next(iter(self._returned.values()), None) or next(iter(self._waiting.values()), None)
        return now - first.since if first else 0.0

    def add(self, task: KernelTask, now: float) -> Ticket:
        """QueueFullError when there are too many."""
        size = sum(len(text.encode(errors="replace")) for text in (task.input, task.input_extension))
        if len(self._accepted) >= self._most_tasks:
            raise QueueFullError(f"{len(self._accepted)} tasks wait or run; allowed are {self._most_tasks}")
        if self._accepted and self._bytes + size > self._most_bytes:
            raise QueueFullError(f"tasks of {self._bytes} bytes wait or run; allowed are {self._most_bytes}")
        ticket = Ticket(next(self._keys), task, size, now)
        self._accepted[ticket.key] = self._waiting[ticket.key] = ticket
        self._bytes += size
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Its caller has an answer, or has gone."""
        if self._accepted.pop(ticket.key, None) is not None:
            self._bytes -= ticket.size
        self._waiting.pop(ticket.key, None)
        self._returned.pop(ticket.key, None)

    def give_back(self, tickets: Iterable[Ticket]) -> None:
        """To the front, in their order, those whose callers are still there."""
        back = {ticket.key: ticket for ticket in tickets if not ticket.answer.done()}
        self._returned = back | self._returned

    def take(self, most: int) -> list[Ticket]:
        """The next batch; one that has to be alone is one."""
        batch: list[Ticket] = []
        for queue in (self._returned, self._waiting):
            while queue and len(batch) < most:
                ticket = next(iter(queue.values()))
                if ticket.is_alone and batch:
                    return batch
                del queue[ticket.key]
                # An answer whose caller has not yet been woken counts as one.
                if ticket.answer.done():
                    continue
                batch.append(ticket)
                if ticket.is_alone:
                    return batch
        return batch
