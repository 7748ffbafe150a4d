"""Equal shares for users, by their weights."""

from __future__ import annotations

from scheduling_service.domain.job import Job
from scheduling_service.domain.policies.base import Holdings, Policy, by_priority
from scheduling_service.domain.policies.priority import is_more_urgent


class FairShare(Policy):
    """The user who holds least for their weight is served first; priorities order the jobs of one user.

    What one user leaves unused goes to the others. An elastic gang gives way when its owner, even without what the gang
    can spare, holds more than the claimant's owner will: that cannot turn round, so no two gangs suspend each other.
    """

    name = "fairshare"

    def key(self, job: Job) -> float:
        return by_priority(job)

    def standing(self, owner: str, holdings: Holdings) -> float:
        return holdings.relative(owner)

    def yields(self, gang: Job, claimant: Job, holdings: Holdings) -> bool:
        owner, theirs = gang.spec.owner, claimant.spec.owner
        if owner == theirs:
            return is_more_urgent(claimant, gang)
        return holdings.relative(owner, -gang.spare) > holdings.relative(theirs, claimant.spec.fewest_ranks)
