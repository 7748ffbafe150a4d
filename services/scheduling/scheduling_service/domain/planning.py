"""Who starts now and with how many ranks, who makes room, and why everybody else waits. The same for all policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from scheduling_service.domain.application import is_stopped
from scheduling_service.domain.gpus import WHOLE, Placement, most_ranks
from scheduling_service.domain.job import Job
from scheduling_service.domain.ledger import GroupLedger

# A gang this near to its end would lose more by a restart than it wins by more ranks.
NEARLY_DONE = 0.9
# How many of those behind the first that cannot start are looked at for backfill.
LOOK_AHEAD = 100
# A gang that has run for less is not suspended: its restart would cost more than it did.
SUSPEND_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class Start:
    """A gang to start: its ranks, the devices of each, and whether it passes one that cannot start."""

    job: Job
    ranks: int
    gpus: Placement = ()
    is_backfill: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do in a group now.

    `resize` and `suspend` say why, by job; `reasons` why those wait that were looked at and have a reason of their own.
    All others are behind `runs_next`, a name, empty when nobody waits.
    """

    start: Sequence[Start] = ()
    resize: Mapping[str, str] = field(default_factory=dict)
    suspend: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    runs_next: str = ""


def plan(ledger: GroupLedger, now: datetime, *, idle_seconds: float = 0.0, grow_after_seconds: float = 0.0) -> Plan:
    """Decide for one group; `idle_seconds` since somebody waited last or no slot was free.

    A gang starts whole or not at all. One that cannot start, even if elastic gangs give what they can, holds up those
    behind it: letting smaller ones pass would starve it. Only those pass that cannot delay it (backfill). What never
    fits the group or is over its owner's quota holds nobody up. The ledger is left as it was.
    """
    if not ledger.group.is_started:
        return _nothing_starts(ledger)
    if not ledger.returning and not len(ledger.backlog):
        if ledger.paused or idle_seconds < grow_after_seconds:
            return Plan()
        return Plan(resize=_grow(ledger, now, grow_after_seconds))
    return _Planning(ledger, now).run()


def _nothing_starts(ledger: GroupLedger) -> Plan:
    reason = is_stopped(ledger.group.name)
    first = next(chain(ledger.returning.values(), ledger.backlog.in_order(ledger.holdings)), None)
    return Plan(reasons={first.id: reason} if first else {}, runs_next=name_of(first) if first else "")


class _Planning:
    """One decision, in which slots, GPUs and holdings are changed and changed back."""

    def __init__(self, ledger: GroupLedger, now: datetime) -> None:
        self._ledger, self._now = ledger, now
        self._group, self._holdings = ledger.group, ledger.holdings
        self._free = ledger.free
        self._reasons: dict[str, str] = {}
        self._resize: dict[str, str] = {}
        self._suspend: dict[str, str] = {}
        # Those that may start, in order, each with its devices.
        self._admitted: list[Job] = []
        self._backfill: set[str] = set()
        self._gpus: dict[str, list[list[int]]] = {}
        self._held: list[tuple[Job, int]] = []
        self._giving = [ledger.running[job_id] for _, job_id in ledger.giving]
        # With what gangs give that are ending or could shrink.
        self._room = self._free + sum(gang.spare for gang in self._giving)

    def run(self) -> Plan:
        blocker: Job | None = None
        order = self._in_order()
        try:
            blocker = self._admit(order)
            starts, held_up = self._those_that_fit()
            if held_up is None and blocker is not None:
                self._pass(order, blocker, starts)
            first = held_up or blocker
            sized = self._spread(starts)
        finally:
            self._change_back()
        return Plan(sized, self._resize, self._suspend, self._reasons, name_of(first) if first else "")

    def _in_order(self) -> Iterator[Job]:
        for job in sorted(self._ledger.returning.values(), key=lambda job: job.sequence):
            if self._can_ever_fit(job):
                yield job
        order = self._ledger.backlog.in_order(self._holdings)
        for job in order:
            needed = job.spec.fewest_ranks
            owner = job.spec.owner
            left = self._holdings.left(owner)
            if not self._can_ever_fit(job):
                continue
            if needed > left:
                held = self._holdings.slots[owner]
                self._reasons[job.id] = f"{_needs(needed)}, {owner} holds {held} of {held + int(left)} allowed"
                if needed <= held + left:
                    # Its turn comes when the owner's others have ended: what is behind it must not keep it from that.
                    order.skip_owner()
            else:
                yield job

    def _can_ever_fit(self, job: Job) -> bool:
        """False, with the reason, for what the group has become too small for: it holds up nobody."""
        needed, group = job.spec.fewest_ranks, self._group
        if needed > group.slots:
            self._reasons[job.id] = f"{_needs(needed)}, {group.name} has {group.slots}"
            return False
        most = most_ranks(group.hosts, group.gpus_per_host, self._per_rank(job), job.spec.gpu_share)
        if most is not None and needed > most:
            self._reasons[job.id] = f"{self._gpus_wanted(job)}, {group.name} has GPUs for {_ranks(most)}"
            return False
        return True

    def _admit(self, order: Iterator[Job]) -> Job | None:
        """Take all that fit when the elastic gangs give what they can; the first that does not, if any."""
        for job in order:
            needed = job.spec.fewest_ranks
            victims = self._victims(job) if needed > self._room else []
            if needed > self._room + sum(gang.spec.fewest_ranks for gang in victims):
                left = max(0, self._free - self._needed(self._admitted))
                self._reasons[job.id] = f"{_needs(needed)}, {left} of {self._group.slots} are free; runs next"
                return job
            if not self._place(job, needed):
                self._make_room_for_gpus(job)
                self._reasons[job.id] = f"{self._gpus_wanted(job)}; runs next"
                return job
            for gang in victims:
                if needed <= self._room:
                    break
                self._room += gang.spec.fewest_ranks
                self._suspend[gang.id] = f"makes room for {name_of(job)}"
            self._room -= needed
            self._hold(job, needed)
            self._admitted.append(job)
        return None

    def _victims(self, claimant: Job, settled_seconds: float = SUSPEND_AFTER_SECONDS) -> list[Job]:
        """Elastic gangs that may be suspended for it, those that passed others and the youngest first."""
        victims = [
            gang
            for gang in self._giving
            if not gang.is_leaving
            and gang.id not in self._suspend
            and _settled_seconds(gang, self._now) >= settled_seconds
            and self._yields(gang, claimant)
        ]
        return sorted(victims, key=lambda gang: (not gang.is_backfill, -gang.sequence))

    def _yields(self, gang: Job, claimant: Job) -> bool:
        policy, holdings = self._ledger.policy, self._holdings
        if policy.yields(gang, claimant, holdings):
            return True

        def place(job: Job) -> tuple[float, float]:
            return policy.standing(job.spec.owner, holdings), policy.key(job)

        # One that passed others for the slots that they could not use yet gives them back to who comes before it.
        return gang.is_backfill and place(claimant) < place(gang)

    def _those_that_fit(self) -> tuple[list[Job], Job | None]:
        """Of the admitted those that need not wait until others have made room, and the first that must."""
        starts: list[Job] = []
        left = self._free
        for position, job in enumerate(self._admitted):
            if job.spec.fewest_ranks > left:
                needs = _needs(job.spec.fewest_ranks)
                self._reasons[job.id] = f"{needs}, {left} of {self._group.slots} are free; others make room"
                self._make_room(self._needed(self._admitted) - self._free, job)
                for late in self._admitted[position:]:
                    self._let_go(late)
                return starts, job
            starts.append(job)
            left -= job.spec.fewest_ranks
        return starts, None

    def _make_room(self, lacking: int, for_whom: Job) -> None:
        """The youngest gangs give first; what those give that are ending already counts, and so do suspensions."""
        lacking -= sum(gang.spare for gang in self._giving if gang.resizing or gang.is_leaving)
        lacking -= sum(gang.current_ranks for gang in self._giving if gang.id in self._suspend)
        for gang in reversed(self._giving):
            if lacking > 0 and gang.spare and not (gang.resizing or gang.is_leaving or gang.id in self._suspend):
                given = min(gang.spare, lacking)
                lacking -= given
                self._resize[gang.id] = _shrinks(gang, given, for_whom)

    def _make_room_for_gpus(self, job: Job) -> None:
        """As `_make_room`, until the GPUs of ranks that are given up are what `job` needs; nobody gives in vain."""
        given_up: list[tuple[Placement, int]] = []

        def give(gang: Job, ranks: Sequence[int]) -> None:
            placement = [gang.gpus[rank] for rank in ranks]
            self._ledger.gpus.give(placement, gang.spec.gpu_share)
            given_up.append((placement, gang.spec.gpu_share))

        def fits() -> bool:
            spec = job.spec
            ranks = spec.fewest_ranks
            return self._ledger.gpus.fitting(ranks, self._per_rank(job), spec.gpu_share) == ranks

        resize: dict[str, str] = {}
        giving = [gang for gang in self._giving if gang.gpus and gang.spare]
        for gang in giving:
            if gang.resizing or gang.is_leaving:
                give(gang, range(gang.current_ranks - gang.spare, gang.current_ranks))
        for gang in reversed(giving):
            if gang.resizing or gang.is_leaving:
                continue
            for given in range(1, gang.spare + 1):
                if fits():
                    break
                give(gang, [gang.current_ranks - given])
                resize[gang.id] = _shrinks(gang, given, job)
        suspend: dict[str, str] = {}
        for gang in self._victims(job):
            if fits():
                break
            kept = [
                rank for rank in range(gang.current_ranks) if gang.id not in resize or rank < gang.spec.fewest_ranks
            ]
            if gang.gpus:
                give(gang, kept)
                resize.pop(gang.id, None)
                suspend[gang.id] = f"makes room for {name_of(job)}"
        if fits():
            self._resize |= resize
            self._suspend |= suspend
        for placement, share in given_up:
            self._ledger.gpus.take(placement, share)

    def _pass(self, order: Iterator[Job], blocker: Job, starts: list[Job]) -> None:
        """Backfill: let those behind `blocker` start that cannot delay it.

        They end before it could start anyway, or take no slot that it will need then, or are elastic and give way.
        """
        left = self._free - self._needed(starts)
        if left <= 0:
            return
        starts_at, extra = self._shadow(blocker, left)
        # Those that give way to it will have run long enough soon: were others to take their place meanwhile, it would
        # wait for ever.
        yielding = sum(gang.spec.fewest_ranks for gang in self._victims(blocker, settled_seconds=0.0))
        elastic_may = blocker.spec.fewest_ranks > self._room + yielding
        for _, job in zip(range(LOOK_AHEAD), order, strict=False):
            needed = job.spec.fewest_ranks
            if needed > left:
                continue
            ends_before = bool(job.spec.max_seconds) and (
                self._now.timestamp() + job.spec.max_seconds + job.spec.grace_seconds <= starts_at
            )
            spares = needed <= extra
            if self._per_rank(blocker) and not self._per_rank(job):
                # It waits for devices, not for slots.
                spares = spares or left - needed >= blocker.spec.fewest_ranks
            gives_way = job.spec.is_elastic and elastic_may
            if not (ends_before or spares or gives_way) or not self._place(job, needed):
                continue
            if not ends_before and not gives_way:
                extra = max(0, extra - needed)
            left -= needed
            self._hold(job, needed)
            self._backfill.add(job.id)
            starts.append(job)
            if left <= 0:
                return

    def _shadow(self, blocker: Job, left: int) -> tuple[float, int]:
        """When `blocker` can start at the latest by the limits of those that run (0 when they do not say), and how many
        slots it leaves free then."""
        needed, per_rank, share = blocker.spec.fewest_ranks, self._per_rank(blocker), blocker.spec.gpu_share
        given_up: list[tuple[Placement, int]] = []
        try:
            for end, job_id in self._ledger.ends:
                gang = self._ledger.running[job_id]
                left += gang.current_ranks
                if per_rank and gang.gpus:
                    self._ledger.gpus.give(gang.gpus, gang.spec.gpu_share)
                    given_up.append((gang.gpus, gang.spec.gpu_share))
                if left >= needed and (not per_rank or self._ledger.gpus.fitting(needed, per_rank, share) == needed):
                    return end, left - needed
        finally:
            for placement, taken in given_up:
                self._ledger.gpus.take(placement, taken)
        return 0.0, 0

    def _spread(self, starts: Sequence[Job]) -> list[Start]:
        """Elastic ones get what is left beyond what all need, the first as much as it can use."""
        extra = self._free - self._needed(starts)
        sized = []
        for job in starts:
            more = 0
            if job.spec.is_elastic and extra > 0:
                most = min(extra, job.spec.ranks - job.spec.fewest_ranks, self._holdings.left(job.spec.owner))
                more = self._place(job, int(most))
                self._hold(job, more)
                extra -= more
            gpus = self._gpus[job.id] if self._per_rank(job) else ()
            sized.append(Start(job, job.spec.fewest_ranks + more, gpus, job.id in self._backfill))
        return sized

    def _place(self, job: Job, ranks: int) -> int:
        """Take devices for `ranks` more of the job, all of them for its first; how many it got."""
        pool, per_rank, share = self._ledger.gpus, self._per_rank(job), job.spec.gpu_share
        if job.id not in self._gpus and pool.fitting(ranks, per_rank, share) < ranks:
            return 0
        placed = pool.place(ranks, per_rank, share)
        self._gpus.setdefault(job.id, []).extend(placed)
        return len(placed)

    def _hold(self, job: Job, ranks: int) -> None:
        self._holdings.slots[job.spec.owner] += ranks
        self._held.append((job, ranks))

    def _let_go(self, job: Job) -> None:
        """It does not start now after all: its devices are for others."""
        self._ledger.gpus.give(self._gpus.pop(job.id, ()), job.spec.gpu_share)

    def _change_back(self) -> None:
        for job, ranks in self._held:
            self._holdings.slots[job.spec.owner] -= ranks
            self._let_go(job)

    def _per_rank(self, job: Job) -> int:
        """Where there are no GPUs a job that asks for them runs on slots all the same."""
        return job.spec.gpus_of_rank if self._group.gpus else 0

    def _gpus_wanted(self, job: Job) -> str:
        spec = job.spec
        wanted = f"{spec.gpu_share} % of a GPU" if spec.gpu_share < WHOLE else f"{spec.gpus_per_rank} whole GPUs"
        return f"needs {wanted} for each of {_ranks(spec.fewest_ranks)}, free are {_shares(self._ledger.gpus.free)}"

    @staticmethod
    def _needed(jobs: Iterable[Job]) -> int:
        return sum(job.spec.fewest_ranks for job in jobs)


def _grow(ledger: GroupLedger, now: datetime, grow_after_seconds: float) -> dict[str, str]:
    """One gang at a time, the oldest first."""
    giving = [ledger.running[job_id] for _, job_id in ledger.giving]
    if ledger.free <= 0 or any(gang.resizing or gang.is_leaving for gang in giving):
        return {}
    for gang in giving:
        progress, spec = gang.progress, gang.spec
        done = progress.done / progress.total if progress.total > 0 else 0.0
        if _settled_seconds(gang, now) >= grow_after_seconds and done < NEARLY_DONE:
            most = min(ledger.free, spec.ranks - gang.current_ranks, ledger.holdings.left(spec.owner))
            per_rank = spec.gpus_of_rank if ledger.group.gpus else 0
            more = ledger.gpus.fitting(int(most), per_rank, spec.gpu_share)
            if more > 0:
                return {gang.id: f"grows from {gang.current_ranks} to {_ranks(gang.current_ranks + more)}"}
    return {}


def name_of(job: Job) -> str:
    """What people call it."""
    return job.spec.application_name or job.spec.name


def _settled_seconds(gang: Job, now: datetime) -> float:
    return (now - (gang.attempt_started_at or now)).total_seconds()


def _shrinks(gang: Job, given: int, for_whom: Job) -> str:
    left = _ranks(gang.current_ranks - given)
    return f"shrinks from {gang.current_ranks} to {left} to make room for {name_of(for_whom)}"


def _shares(free: Sequence[int]) -> str:
    """`2 of 8 whole`, or each device's where there are few."""
    if len(free) <= 8:
        return ", ".join(f"{share} %" for share in free)
    return f"{sum(share == WHOLE for share in free)} whole ones of {len(free)}"


def _needs(slots: int) -> str:
    return "needs 1 slot" if slots == 1 else f"needs {slots} slots at once"


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number != 1 else ''}"
