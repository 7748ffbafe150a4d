"""What a policy decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from scheduling_service.domain.instance_group import UserShare
from scheduling_service.domain.job import Job

# What a point of priority is worth.
PRIORITY_SECONDS = 600.0


@dataclass
class Holdings:
    """Slots that each user holds in a group, and what they may."""

    slots: Counter[str] = field(default_factory=Counter)
    shares: Mapping[str, UserShare] = field(default_factory=dict)
    max_slots_per_user: int = 0

    def relative(self, owner: str, more: float = 0) -> float:
        """What the owner holds, and `more`, for each point of weight."""
        share = self.shares.get(owner)
        return (self.slots[owner] + more) / (share.weight if share else 1.0)

    def left(self, owner: str) -> float:
        """Slots that the owner may take yet; infinite without a quota."""
        share = self.shares.get(owner)
        most = (share.max_slots if share else 0) or self.max_slots_per_user
        return most - self.slots[owner] if most else float("inf")


class Policy(ABC):
    """Who is served first, and who gives way to whom. Without state: everything it needs is in what it is given.

    Those that wait are served by the `standing` of their owners and, of one owner or of equal standing, by their `key`;
    the smallest comes first. Both must let everybody come first some day: a key that grows with the time of submission
    does. Plans do the rest, the same for all policies: whole gangs, quotas, GPUs, backfill, shrinking and suspension.
    """

    name: ClassVar[str]

    @abstractmethod
    def key(self, job: Job) -> float:
        """Its place among others; must not change while it waits."""

    @abstractmethod
    def standing(self, owner: str, holdings: Holdings) -> float:
        """The place of an owner among owners, asked again whenever the owner was given something."""

    @abstractmethod
    def yields(self, gang: Job, claimant: Job, holdings: Holdings) -> bool:
        """Whether the elastic `gang`, which runs, is suspended when `claimant` cannot start otherwise."""


def by_priority(job: Job) -> float:
    """Seconds since the epoch: each point of priority counts like so many seconds of earlier submission.

    So priority goes first and yet nothing waits for ever: what comes later than a day needs 144 points more.
    """
    return job.created_at.timestamp() - PRIORITY_SECONDS * job.spec.priority
