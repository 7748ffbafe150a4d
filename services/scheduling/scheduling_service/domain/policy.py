"""Who runs next: first come, first served, whole gangs only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, in the order of submission; `delayed_seconds` is what is left of a retry's pause."""

    job_id: str
    name: str
    ranks: int
    delayed_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Jobs to start now, and for every other one why it waits."""

    start: Sequence[str]
    reasons: dict[str, str]


def plan(waiting: Sequence[Waiting], slots: int, used: int) -> Plan:
    """Decide for one group of `slots`, of which `used` are taken.

    A gang starts whole or not at all. A gang that does not fit holds the queue behind it: letting smaller jobs pass
    would starve it. Jobs that pause before a retry hold nobody up.
    """
    free = slots - used
    start: list[str] = []
    reasons: dict[str, str] = {}
    blocker: Waiting | None = None
    for job in waiting:
        if job.delayed_seconds > 0:
            reasons[job.job_id] = f"pauses {job.delayed_seconds:.0f} s before it is started again"
        elif blocker is not None:
            reasons[job.job_id] = f"behind {blocker.name}, which runs next"
        elif job.ranks <= free:
            free -= job.ranks
            start.append(job.job_id)
        else:
            blocker = job
            reasons[job.job_id] = f"needs {job.ranks} slots at once, {free} of {slots} are free; runs next"
    return Plan(start, reasons)
