"""Those that wait and may start, and the order in which a plan looks at them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

from scheduling_service.domain.job import Job
from scheduling_service.domain.policies.base import Holdings, Policy

_Place = tuple[float, int, str]


class Backlog:
    """Jobs of one group by owner, each owner's in the order of the policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._places: dict[str, list[_Place]] = {}
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def add(self, job: Job) -> None:
        self._jobs[job.id] = job
        insort(self._places.setdefault(job.spec.owner, []), self._place(job))

    def remove(self, job: Job) -> None:
        places = self._places[job.spec.owner]
        del places[bisect_left(places, self._place(job))]
        if not places:
            del self._places[job.spec.owner]
        del self._jobs[job.id]

    def in_order(self, holdings: Holdings) -> Order:
        """The order in which they are served. `holdings` may change while it is gone through."""
        return Order(self._policy, self._places, self._jobs, holdings)

    def _place(self, job: Job) -> _Place:
        return (self._policy.key(job), job.sequence, job.id)


class Order(Iterator[Job]):
    """One walk through a backlog: costs as much as is looked at, however much waits."""

    def __init__(
        self, policy: Policy, places: dict[str, list[_Place]], jobs: dict[str, Job], holdings: Holdings
    ) -> None:
        self._policy, self._places, self._jobs, self._holdings = policy, places, jobs, holdings
        self._heads: list[tuple[float, _Place, str, int]] = []
        self._last: tuple[str, int] | None = None
        for owner in places:
            self._push(owner, 0)

    def __next__(self) -> Job:
        if self._last is not None:
            owner, index = self._last
            self._last = None
            # Only now: what the owner was given meanwhile counts.
            self._push(owner, index + 1)
        if not self._heads:
            raise StopIteration
        _, place, owner, index = heapq.heappop(self._heads)
        self._last = (owner, index)
        return self._jobs[place[2]]

    def skip_owner(self) -> None:
        """Nothing more of the owner of the last one."""
        self._last = None

    def _push(self, owner: str, index: int) -> None:
        places = self._places[owner]
        if index < len(places):
            standing = self._policy.standing(owner, self._holdings)
            heapq.heappush(self._heads, (standing, places[index], owner, index))
