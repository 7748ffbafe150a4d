"""Who runs next and with how many ranks: first come, first served, whole gangs only; elastic ones give and take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduling_service.domain.gpus import WHOLE, Placement, allocate

# A gang this near to its end would lose more by a restart than it wins by more ranks.
NEARLY_DONE = 0.9


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, in the order of submission; `delayed_seconds` is what is left of a retry's pause.

    An elastic one starts with `fewest` to `ranks` ranks, a rigid one (`fewest` 0) with `ranks`. One that is `resizing`
    ended for the sake of another size and goes on before all others. Each rank takes `gpu_share` per cent of `gpus`.
    """

    job_id: str
    name: str
    ranks: int
    delayed_seconds: float = 0.0
    fewest: int = 0
    resizing: bool = False
    gpus: int = 0
    gpu_share: int = WHOLE

    @property
    def needed(self) -> int:
        """Slots without which it cannot start."""
        return self.fewest or self.ranks


@dataclass(frozen=True)
class Running:
    """A gang of `ranks`, which has run `settled_seconds` with this size and done a part (0 to 1) of its work.

    An elastic one may have `fewest` to `most` ranks; a rigid one has both 0. One that is `resizing` was asked to end
    and comes back, one that is `leaving` does not. `placement` has the GPUs of each rank.
    """

    job_id: str
    name: str
    ranks: int
    fewest: int = 0
    most: int = 0
    settled_seconds: float = 0.0
    done: float = 0.0
    resizing: bool = False
    leaving: bool = False
    gpus: int = 0
    gpu_share: int = WHOLE
    placement: Placement = ()

    @property
    def spare(self) -> int:
        """Slots it can do without."""
        if self.leaving:
            return self.ranks
        return self.ranks - self.fewest if self.fewest else 0


@dataclass(frozen=True)
class Plan:
    """Jobs to start now with how many ranks, gangs to resize and why, and for every other waiting job why it waits.

    `gpus` has the devices of each rank of those that start and take any.
    """

    start: Mapping[str, int]
    resize: Mapping[str, str]
    reasons: Mapping[str, str]
    gpus: Mapping[str, Placement] = field(default_factory=dict)


def plan(
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    slots: int,
    *,
    idle_seconds: float = 0.0,
    grow_after_seconds: float = 0.0,
    free_gpus: Sequence[int] = (),
) -> Plan:
    """Decide for one group of `slots`; `running` in the order of submission, `idle_seconds` since somebody waited last
    or no slot was free, `free_gpus` the free per cent of each device.

    A gang starts whole or not at all. A gang that does not fit, even if the elastic ones shrink, holds the queue behind
    it: letting smaller jobs pass would starve it. Jobs that pause before a retry hold nobody up.
    """
    free = slots - sum(gang.ranks for gang in running)
    room = free + sum(gang.spare for gang in running)
    reasons: dict[str, str] = {}
    admitted: list[Waiting] = []
    blocker: Waiting | None = None
    making_room: dict[str, str] = {}
    devices = list(free_gpus)
    gpus: dict[str, list[list[int]]] = {}
    for job in sorted(waiting, key=lambda job: not job.resizing):
        if job.delayed_seconds > 0:
            reasons[job.job_id] = f"pauses {job.delayed_seconds:.0f} s before it is started again"
        elif blocker is not None:
            reasons[job.job_id] = f"behind {blocker.name}, which runs next"
        elif job.needed > room:
            blocker = job
            left = max(0, free - _needed(admitted))
            reasons[job.job_id] = f"{_needs(job.needed)}, {left} of {slots} are free; runs next"
        elif len(placement := allocate(rest := list(devices), job.needed, job.gpus, job.gpu_share)) < job.needed:
            blocker = job
            making_room = _shrink_for_gpus(running, devices, job)
            wanted = f"{job.gpu_share} % of a GPU" if job.gpu_share < WHOLE else f"{job.gpus} whole GPUs"
            shares = ", ".join(f"{share} %" for share in devices)
            reasons[job.job_id] = f"needs {wanted} for each of {_ranks(job.needed)}, free are {shares}; runs next"
        else:
            room -= job.needed
            admitted.append(job)
            devices, gpus[job.job_id] = rest, placement

    start: dict[str, int] = {}
    extra = max(0, free - _needed(admitted))
    for position, job in enumerate(admitted):
        if job.needed > free - sum(start.values()):
            left = free - sum(start.values())
            reasons[job.job_id] = f"{_needs(job.needed)}, {left} of {slots} are free; others make room"
            reasons |= {held.job_id: f"behind {job.name}, which runs next" for held in admitted[position + 1 :]}
            return Plan(start, _shrink(running, _needed(admitted) - free, job.name), reasons, gpus)
        gpus[job.job_id] += allocate(devices, min(extra, job.ranks - job.needed), job.gpus, job.gpu_share)
        start[job.job_id] = len(gpus[job.job_id])
        extra -= start[job.job_id] - job.needed
    if waiting or idle_seconds < grow_after_seconds:
        return Plan(start, making_room, reasons, gpus)
    return Plan({}, _grow(running, free, devices, grow_after_seconds), {})


def _needed(jobs: Iterable[Waiting]) -> int:
    return sum(job.needed for job in jobs)


def _shrink(running: Sequence[Running], lacking: int, for_whom: str) -> dict[str, str]:
    """The youngest gangs give first; what those give that are ending already counts."""
    lacking -= sum(gang.spare for gang in running if gang.resizing or gang.leaving)
    resize: dict[str, str] = {}
    for gang in reversed(running):
        if lacking > 0 and gang.spare and not (gang.resizing or gang.leaving):
            given = min(gang.spare, lacking)
            lacking -= given
            resize[gang.job_id] = _shrinks(gang, given, for_whom)
    return resize


def _shrink_for_gpus(running: Sequence[Running], devices: Sequence[int], job: Waiting) -> dict[str, str]:
    """As `_shrink`, until the GPUs of ranks that are given up are what `job` needs; nobody where they never are."""
    free = list(devices)

    def give(gang: Running, rank: int) -> None:
        for device in gang.placement[rank]:
            free[device] += gang.gpu_share

    def fits() -> bool:
        return len(allocate(list(free), job.needed, job.gpus, job.gpu_share)) == job.needed

    giving = [gang for gang in running if gang.placement and gang.spare]
    for gang in giving:
        if gang.resizing or gang.leaving:
            for rank in range(gang.ranks - gang.spare, gang.ranks):
                give(gang, rank)
    resize: dict[str, str] = {}
    for gang in reversed(giving):
        if gang.resizing or gang.leaving:
            continue
        for given in range(1, gang.spare + 1):
            if fits():
                return resize
            give(gang, gang.ranks - given)
            resize[gang.job_id] = _shrinks(gang, given, job.name)
    return resize if fits() else {}


def _shrinks(gang: Running, given: int, for_whom: str) -> str:
    return f"shrinks from {gang.ranks} to {_ranks(gang.ranks - given)} to make room for {for_whom}"


def _grow(running: Sequence[Running], free: int, devices: Sequence[int], grow_after_seconds: float) -> dict[str, str]:
    """One gang at a time, the oldest first."""
    if free <= 0 or any(gang.resizing or gang.leaving for gang in running):
        return {}
    for gang in running:
        if gang.settled_seconds >= grow_after_seconds and gang.done < NEARLY_DONE:
            more = len(allocate(list(devices), min(free, gang.most - gang.ranks), gang.gpus, gang.gpu_share))
            if more:
                return {gang.job_id: f"grows from {gang.ranks} to {_ranks(gang.ranks + more)}"}
    return {}


def _needs(slots: int) -> str:
    return "needs 1 slot" if slots == 1 else f"needs {slots} slots at once"


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number != 1 else ''}"
