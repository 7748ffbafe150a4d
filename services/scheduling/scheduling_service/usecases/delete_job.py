"""Forget an ended job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from servicekit.errors import in_use

from scheduling_service.usecases.ports import Jobs, RunDirectories


class DeleteJob:
    """Files first, then the row: a kill in between leaves a row that can be deleted again."""

    def __init__(
        self, jobs: Jobs, directories: RunDirectories, tell_end: Callable[[str], None] = lambda job_id: None
    ) -> None:
        """`tell_end` is called with the id of a job that is gone."""
        self._jobs, self._directories, self._tell_end = jobs, directories, tell_end

    async def __call__(self, job_id: str) -> None:
        for job in await self._jobs.find([job_id]):
            if not job.state.is_final:
                raise in_use("job", job_id, f"its ranks (it is {job.state})")
            await asyncio.to_thread(self._directories.remove, job_id)
            await self._jobs.delete(job_id)
            self._tell_end(job_id)
