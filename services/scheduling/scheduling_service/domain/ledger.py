"""Every job that has not ended, ordered for the queue's questions, so that a decision need not look at all of them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from scheduling_service.domain.backlog import Backlog
from scheduling_service.domain.gpus import Gpus
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Job, State
from scheduling_service.domain.policies.base import Holdings
from scheduling_service.domain.policies.registry import make_policy

_Expected = tuple[float, str]


class GroupLedger:
    """The jobs of one instance group and what they hold."""

    def __init__(self, group: InstanceGroup, shares: Iterable[UserShare] = ()) -> None:
        self.group = group
        self.policy = make_policy(group.policy)
        self.holdings = Holdings(
            shares={share.user: share for share in shares}, max_slots_per_user=group.max_slots_per_user
        )
        self.backlog = Backlog(self.policy)
        self.gpus = Gpus(group.hosts, group.gpus_per_host)
        self.running: dict[str, Job] = {}
        # Of those that run: the elastic ones and those that were asked to end, in the order of their submission.
        self.giving: list[tuple[int, str]] = []
        # Of those that run and have a limit: by when they will have ended.
        self.ends: list[_Expected] = []
        # Ended for another size: they go on before all others.
        self.returning: dict[str, Job] = {}
        # How many pause before a retry.
        self.paused = 0
        self.used = 0
        # Those that were last told why they wait.
        self.told: set[str] = set()

    def waiting(self, job_id: str) -> Job | None:
        """One that may start and does not run."""
        return self.returning.get(job_id) or self.backlog.get(job_id)

    def all_waiting(self) -> Iterator[Job]:
        """All that may start and do not run."""
        yield from self.returning.values()
        yield from self.backlog

    @property
    def free(self) -> int:
        """Slots that nobody holds; negative in a group that was made smaller."""
        return self.group.slots - self.used


class _Entry:
    """Where a job lies in its group's ledger, to be found there again after it changed."""

    __slots__ = ("end", "giving", "gpus", "job", "place", "ranks", "share", "waits_for")

    def __init__(self, job: Job, place: str) -> None:
        self.job, self.place = job, place
        self.ranks, self.gpus, self.share = job.current_ranks, job.gpus, job.spec.gpu_share
        self.end: _Expected | None = None
        self.giving = False
        self.waits_for = tuple(job.waits_for)


class Ledger:
    """All groups. `put` a job after every change, `drop` it when it has ended."""

    def __init__(self) -> None:
        self._groups: dict[str, GroupLedger] = {}
        self._entries: dict[str, _Entry] = {}
        # Pauses before a retry, the first to end first; those that changed meanwhile are passed over.
        self._pauses: list[tuple[datetime, str]] = []
        self._waiting_for: dict[str, dict[str, None]] = {}
        self._stopping: dict[str, None] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def groups(self) -> Iterable[GroupLedger]:
        return self._groups.values()

    def knows_group(self, group_id: str) -> bool:
        return group_id in self._groups

    def stopping(self) -> list[Job]:
        """Those that a stop was asked for."""
        return [self._entries[job_id].job for job_id in self._stopping]

    def group(self, group_id: str) -> GroupLedger:
        return self._groups[group_id]

    def get(self, job_id: str) -> Job | None:
        entry = self._entries.get(job_id)
        return entry.job if entry else None

    def running(self) -> Iterator[Job]:
        for group in self._groups.values():
            yield from group.running.values()

    def waiting_for(self, job_id: str) -> list[Job]:
        """Those that may start only after this job."""
        return [self._entries[other].job for other in self._waiting_for.get(job_id, ())]

    def set_group(self, group: InstanceGroup, shares: Iterable[UserShare]) -> bool:
        """Make a group known, or known anew; False when nothing about it changed."""
        old = self._groups.get(group.id)
        shares = list(shares)
        if old and (old.group, list(old.holdings.shares.values())) == (group, shares):
            return False
        new = GroupLedger(group, shares)
        jobs = [entry.job for entry in self._entries.values() if entry.job.group_id == group.id]
        for job in jobs:
            self.drop(job.id)
        self._groups[group.id] = new
        if old:
            new.told = old.told
        for job in jobs:
            self.put(job)
        return True

    def forget_groups_but(self, known: Collection[str]) -> list[Job]:
        """Forget groups that are gone; the jobs that they had."""
        gone = self._groups.keys() - known
        if not gone:
            return []
        jobs = [entry.job for entry in self._entries.values() if entry.job.group_id in gone]
        for job in jobs:
            self.drop(job.id)
        for group_id in gone:
            del self._groups[group_id]
        return jobs

    def put(self, job: Job) -> None:
        """Note a job as it stands now."""
        self.drop(job.id)
        group = self._groups[job.group_id]
        if job.state is State.RUNNING:
            entry = _Entry(job, "running")
            self._put_running(group, job, entry)
        elif job.waits_for:
            entry = _Entry(job, "dependent")
            for other in entry.waits_for:
                self._waiting_for.setdefault(other, {})[job.id] = None
        elif job.not_before is not None:
            entry = _Entry(job, "paused")
            group.paused += 1
            heapq.heappush(self._pauses, (job.not_before, job.id))
        elif job.resizing:
            entry = _Entry(job, "returning")
            group.returning[job.id] = job
        else:
            entry = _Entry(job, "backlog")
            group.backlog.add(job)
        self._entries[job.id] = entry
        if job.stop_requested:
            self._stopping[job.id] = None

    def drop(self, job_id: str) -> None:
        """Forget a job; unknown is fine."""
        entry = self._entries.pop(job_id, None)
        if entry is None:
            return
        self._stopping.pop(job_id, None)
        job = entry.job
        group = self._groups[job.group_id]
        if entry.place == "running":
            self._drop_running(group, job, entry)
        elif entry.place == "dependent":
            for other in entry.waits_for:
                waiting = self._waiting_for.get(other, {})
                waiting.pop(job_id, None)
                if not waiting:
                    self._waiting_for.pop(other, None)
        elif entry.place == "paused":
            group.paused -= 1
        elif entry.place == "returning":
            del group.returning[job_id]
        elif entry.place == "backlog":
            group.backlog.remove(job)

    def wake_paused(self, now: datetime) -> None:
        """Those whose pause is over may start."""
        while self._pauses and self._pauses[0][0] <= now:
            _, job_id = heapq.heappop(self._pauses)
            entry = self._entries.get(job_id)
            if entry is not None and entry.place == "paused" and (entry.job.not_before or now) <= now:
                entry.job.not_before = None
                self.put(entry.job)

    @staticmethod
    def _put_running(group: GroupLedger, job: Job, entry: _Entry) -> None:
        group.running[job.id] = job
        group.used += job.current_ranks
        group.holdings.slots[job.spec.owner] += job.current_ranks
        group.gpus.take(job.gpus, job.spec.gpu_share)
        if job.spec.is_elastic or job.is_leaving:
            entry.giving = True
            insort(group.giving, (job.sequence, job.id))
        if job.spec.max_seconds and job.attempt_started_at:
            end = job.attempt_started_at.timestamp() + job.spec.max_seconds + job.spec.grace_seconds
            entry.end = (end, job.id)
            insort(group.ends, entry.end)

    @staticmethod
    def _drop_running(group: GroupLedger, job: Job, entry: _Entry) -> None:
        del group.running[job.id]
        group.used -= entry.ranks
        group.holdings.slots[job.spec.owner] -= entry.ranks
        group.gpus.give(entry.gpus, entry.share)
        if entry.giving:
            del group.giving[bisect_left(group.giving, (job.sequence, job.id))]
        if entry.end is not None:
            del group.ends[bisect_left(group.ends, entry.end)]
