"""Ask a job to end."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import not_found

from scheduling_service.domain.job import Job
from scheduling_service.usecases.ports import Jobs


class StopJob:
    """Writes the wish; the loop makes it true. What has ended stays as it is."""

    def __init__(self, jobs: Jobs, wake: Callable[[], None]) -> None:
        self._jobs, self._wake = jobs, wake

    async def __call__(self, job_id: str) -> Job:
        await self._jobs.request_stop(job_id)
        self._wake()
        found = await self._jobs.find([job_id])
        if not found:
            raise not_found("job", job_id)
        return found[0]
