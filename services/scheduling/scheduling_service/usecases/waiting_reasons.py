"""Why jobs wait, or ended as they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduling_service.domain.application import needs_reason, reason_of
from scheduling_service.domain.job import Job
from scheduling_service.usecases.ports import Groups


class WaitingReasons:
    """A sentence for each job, also for those that the queue did not look at one by one."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    async def __call__(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """By job."""
        runs_next: Mapping[str, str] = {}
        stopped: Mapping[str, str] = {}
        if any(needs_reason(job) for job in jobs):
            runs_next = await self._groups.runs_next()
            stopped = {group.id: group.name for group in await self._groups.all() if not group.is_started}
        return {job.id: reason_of(job, runs_next.get(job.group_id, ""), stopped.get(job.group_id, "")) for job in jobs}
