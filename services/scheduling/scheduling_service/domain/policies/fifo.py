"""First come, first served."""

from __future__ import annotations

from scheduling_service.domain.job import Job
from scheduling_service.domain.policies.base import Holdings, Policy


class Fifo(Policy):
    """In the order of submission, whoever it is; priorities say nothing and nobody gives way."""

    name = "fifo"

    def key(self, job: Job) -> float:
        return job.sequence

    def standing(self, owner: str, holdings: Holdings) -> float:
        return 0.0

    def yields(self, gang: Job, claimant: Job, holdings: Holdings) -> bool:
        return False
