"""Jobs that wait and run, as rows of a group's ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from scheduling_service.domain.gpus import Placement
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Job, Progress, Spec
from scheduling_service.domain.ledger import GroupLedger, Ledger
from scheduling_service.domain.planning import Plan, plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_sequence = count(1)


def waiting(
    job_id: str, ranks: int = 1, fewest: int = 0, *, submitted: float = 0.0, resizing: bool = False, **spec: Any
) -> Job:
    """A job that waits since `submitted` seconds after NOW; those made later come later. Elastic with `fewest`."""
    values: dict[str, Any] = {"name": job_id.upper(), "kind": "training", "owner": "ann", "command": ["true"]}
    job = Job(
        job_id,
        Spec(**{**values, "ranks": ranks, "min_ranks": fewest if fewest < ranks else 0, **spec}),
        "g",
        NOW + timedelta(seconds=submitted),
        sequence=next(_sequence),
    )
    job.resizing = resizing
    return job


def gang(
    job_id: str,
    ranks: int = 1,
    fewest: int = 0,
    most: int = 0,
    *,
    gpus: Placement = (),
    ran: float = 65.0,
    done: float = 0.0,
    resizing: bool = False,
    leaving: bool = False,
    backfill: bool = False,
    **spec: Any,
) -> Job:
    """A job that has run for `ran` seconds with `ranks`; elastic with `fewest` and `most`."""
    job = waiting(job_id, most or ranks, fewest or most or ranks, submitted=-100.0, **spec)
    job.start(ranks, NOW - timedelta(seconds=ran), gpus, is_backfill=backfill)
    job.progress = Progress(done, 1.0 if done else 0.0)
    job.resizing, job.stop_requested = resizing, leaving
    return job


def group_ledger(jobs: Iterable[Job], group: InstanceGroup, shares: Sequence[UserShare] = ()) -> GroupLedger:
    """The ledger of a group with these jobs."""
    ledger = Ledger()
    ledger.set_group(group, shares)
    for job in jobs:
        ledger.put(job)
    return ledger.group(group.id)


def decide(
    jobs: Iterable[Job],
    slots: int,
    *,
    policy: str = "fifo",
    gpus: int = 0,
    hosts: int = 1,
    idle: float = 5.0,
    shares: Sequence[UserShare] = (),
    **group: Any,
) -> Plan:
    """What is decided for these jobs in a group of this size; the ledger must be left as it was."""
    made = InstanceGroup("g", "lab", slots, gpus, hosts, policy=policy, **group)
    ledger = group_ledger(jobs, made, shares)
    before = (ledger.used, dict(ledger.holdings.slots), list(ledger.gpus.free))
    decided = plan(ledger, NOW, idle_seconds=idle, grow_after_seconds=5.0)
    assert (
        ledger.used,
        {user: held for user, held in ledger.holdings.slots.items() if held},
        list(ledger.gpus.free),
    ) == (
        before[0],
        {user: held for user, held in before[1].items() if held},
        before[2],
    )
    assert ledger.used + sum(start.ranks for start in decided.start) <= max(made.slots, ledger.used)
    return decided


def starts(decided: Plan) -> dict[str, int]:
    """Ranks by job."""
    return {start.job.id: start.ranks for start in decided.start}


def placements(decided: Plan) -> dict[str, Placement]:
    """Devices by job."""
    return {start.job.id: start.gpus for start in decided.start if start.gpus}
