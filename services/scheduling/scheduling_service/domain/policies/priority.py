"""The more urgent first."""

from __future__ import annotations

from scheduling_service.domain.job import Job
from scheduling_service.domain.policies.base import Holdings, Policy, by_priority


class Priority(Policy):
    """By priority, which ages: a job that waits overtakes more urgent ones that came much later.

    An elastic gang gives way to a more urgent job.
    """

    name = "priority"

    def key(self, job: Job) -> float:
        return by_priority(job)

    def standing(self, owner: str, holdings: Holdings) -> float:
        return 0.0

    def yields(self, gang: Job, claimant: Job, holdings: Holdings) -> bool:
        return is_more_urgent(claimant, gang)


def is_more_urgent(claimant: Job, gang: Job) -> bool:
    """True when it has more priority and would have been served first, had both waited."""
    return claimant.spec.priority > gang.spec.priority and by_priority(claimant) < by_priority(gang)
