"""Where jobs run or ran, and what they take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduling_service.domain.attempt_facts import AttemptFacts, ProcessFacts
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, State
from scheduling_service.usecases.ports import RunDirectories, Runner

log = logging.getLogger(__name__)

# Attempts that are looked at side by side; how long that may take in a list, and how many that have ended are.
CONCURRENCY = 16
SECONDS = 2.0
MAX_ENDED = 200


@dataclass
class Patience:
    """What is left for one list."""

    seconds: float = SECONDS
    ended: int = MAX_ENDED


class DescribeAttempts:
    """Asks the engines; of those that there is no patience for, it tells what rows know: the ranks and their files."""

    def __init__(self, runner: Runner, directories: RunDirectories) -> None:
        self._runner, self._directories = runner, directories

    async def __call__(
        self, jobs: Sequence[Job], groups: Mapping[str, InstanceGroup], patience: Patience | None = None
    ) -> Mapping[str, AttemptFacts]:
        """By job, for those that were started; takes of `patience` what it needed."""
        patience = patience or Patience()
        started = [job for job in jobs if job.attempt]
        running = [job for job in started if job.state is State.RUNNING]
        ended = [job for job in started if job.state is not State.RUNNING]
        limit = asyncio.Semaphore(CONCURRENCY)

        async def describe(job: Job) -> AttemptFacts:
            async with limit:
                return await self._runner.describe(job, groups[job.group_id])

        # A group may be gone while jobs that ended there are kept.
        asked = [job for job in (*running, *ended[: patience.ended]) if job.group_id in groups]
        patience.ended -= min(patience.ended, len(ended))
        tasks = {job.id: asyncio.create_task(describe(job)) for job in asked}
        if tasks:
            began = time.monotonic()
            await asyncio.wait(tasks.values(), timeout=patience.seconds)
            patience.seconds = max(0.0, patience.seconds - (time.monotonic() - began))
        facts = {job.id: self._from_row(job) for job in started}
        for job_id, task in tasks.items():
            if not task.done():
                task.cancel()
            elif error := task.exception():
                log.warning("job %s could not be described", job_id, exc_info=error)
            else:
                facts[job_id] = task.result()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return facts

    def _from_row(self, job: Job) -> AttemptFacts:
        attempt = self._directories.attempt(job)
        ranks = (
            ProcessFacts(str(rank), stdout=str(attempt / f"rank-{rank}.out"), stderr=str(attempt / f"rank-{rank}.err"))
            for rank in range(job.current_ranks)
        )
        return AttemptFacts(ProcessFacts(""), tuple(ranks))
