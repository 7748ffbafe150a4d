"""Ends of trials, known as soon as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from servicekit.errors import ServiceError

from tuning_service.usecases.ports import Jobs, Wake

log = logging.getLogger(__name__)

# How long an end is waited for in one call, and what lies between two calls that fail.
AWAIT_SECONDS, PAUSE_SECONDS = 20.0, 1.0
# Jobs in one call: the scheduling service takes so many.
JOBS_AT_ONCE = 10_000


class TrialEnds:
    """Waits for the ends of what runs, in one call for all studies, or as many as so many jobs need. It only makes
    things quick: when a call fails, the passes find out by themselves."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._watched: dict[str, tuple[frozenset[str], Wake]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, study_uid: str, job_ids: Collection[str], wake: Wake) -> None:
        """Have `wake` called when one of the jobs ends, once for each; these replace the study's earlier ones."""
        wanted = frozenset(job_ids)
        before, _ = self._watched.pop(study_uid, (frozenset[str](), wake))
        if wanted:
            self._watched[study_uid] = (wanted, wake)
        if wanted == before:
            return
        for task in self._tasks:
            task.cancel()
        everything = sorted({job_id for jobs, _ in self._watched.values() for job_id in jobs})
        parts = [set(everything[at : at + JOBS_AT_ONCE]) for at in range(0, len(everything), JOBS_AT_ONCE)]
        self._tasks = [asyncio.create_task(self._await(part)) for part in parts]

    def forget(self, study_uid: str) -> None:
        """Nothing of the study runs any more."""
        self.watch(study_uid, (), lambda: None)

    async def close(self) -> None:
        """Wait no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _await(self, job_ids: set[str]) -> None:
        while job_ids:
            try:
                ended = await self._jobs.await_ends(sorted(job_ids), AWAIT_SECONDS)
            except Exception as error:
                if not isinstance(error, ServiceError):
                    log.exception("ends of trials cannot be waited for")
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            # Their studies know now; asking for them again would be answered at once.
            job_ids -= ended
            for jobs, wake in list(self._watched.values()):
                if not jobs.isdisjoint(ended):
                    wake()
