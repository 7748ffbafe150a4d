"""Wait for jobs to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from servicekit.errors import invalid

from scheduling_service.usecases.ports import Jobs

log = logging.getLogger(__name__)

MAX_JOBS = 10_000
MAX_SECONDS = 30.0
# What this process did not write itself is seen so late.
LOOK_SECONDS = 1.0


class JobEnds:
    """Who waits for the end of which jobs. Whoever writes an end, or removes a job, tells."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._all: set[asyncio.Event] = set()
        self._is_closed = False

    def tell(self, job_id: str) -> None:
        """The job has ended, or is gone."""
        for event in self._waiting.get(job_id, ()):
            event.set()

    def close(self) -> None:
        """From now on nobody waits: the service ends."""
        self._is_closed = True
        for event in self._all:
            event.set()

    def enter(self, job_ids: Sequence[str], event: asyncio.Event) -> None:
        """Have `event` set when one of them ends."""
        self._all.add(event)
        for job_id in job_ids:
            self._waiting.setdefault(job_id, set()).add(event)
        if self._is_closed:
            event.set()

    def leave(self, job_ids: Sequence[str], event: asyncio.Event) -> None:
        """It is waited for no more."""
        self._all.discard(event)
        for job_id in job_ids:
            waiting = self._waiting.get(job_id, set())
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(job_id, None)

    def awaited(self) -> list[str]:
        """All jobs that somebody waits for."""
        return list(self._waiting)


class AwaitEnds:
    """Callable with ids and seconds: those that have ended or are unknown, as soon as there are any.

    All callers together look into the table once a second; else they are told.
    """

    def __init__(self, jobs: Jobs, ends: JobEnds, look_seconds: float = LOOK_SECONDS) -> None:
        self._jobs, self._ends, self._look_seconds = jobs, ends, look_seconds
        self._looking: asyncio.Task[None] | None = None

    async def __call__(self, job_ids: Sequence[str], seconds: float) -> Sequence[str]:
        if len(job_ids) > MAX_JOBS:
            raise invalid("job_ids", f"{len(job_ids)} ids", f"at most {MAX_JOBS}")
        if not 0 <= seconds <= MAX_SECONDS:
            raise invalid("seconds", seconds, f"0 to {MAX_SECONDS:g}")
        wanted = list(dict.fromkeys(job_ids))
        event = asyncio.Event()
        # Before the table is read: what ends meanwhile says so.
        self._ends.enter(wanted, event)
        try:
            if ended := await self._ended(wanted):
                return ended
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="ends of jobs")
            try:
                async with asyncio.timeout(seconds):
                    await event.wait()
            except TimeoutError:
                return []
            return await self._ended(wanted)
        finally:
            self._ends.leave(wanted, event)

    async def _ended(self, job_ids: Sequence[str]) -> list[str]:
        active = await self._jobs.active_of(job_ids)
        return [job_id for job_id in job_ids if job_id not in active]

    async def _look(self) -> None:
        """While anybody waits: another process may have written an end."""
        while True:
            await asyncio.sleep(self._look_seconds)
            if not (awaited := self._ends.awaited()):
                return
            try:
                for job_id in await self._ended(awaited):
                    self._ends.tell(job_id)
            except Exception:
                log.exception("the ends of jobs cannot be looked for now")
