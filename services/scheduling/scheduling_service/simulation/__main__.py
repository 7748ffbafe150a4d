"""`python -m scheduling_service.simulation`: how long jobs would wait under each policy, on an imagined cluster."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track
from rich.table import Table

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.policies.registry import POLICIES
from scheduling_service.simulation.cluster import ImaginedCluster, Outcome
from scheduling_service.simulation.traces import Mix, draw


def main(arguments: Sequence[str]) -> int:
    """Draw a trace, run it under each policy, print a table."""
    parser = argparse.ArgumentParser(prog="python -m scheduling_service.simulation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--slots-per-host", type=int, default=8)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--load", type=float, default=0.95, help="slots asked for on average, of all that there are")
    parser.add_argument("--mean-seconds", type=float, default=600.0, help="how long a job computes on average")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    slots = chosen.hosts * chosen.slots_per_host
    for name in ("jobs", "hosts", "slots_per_host", "users", "load", "mean_seconds"):
        if not 0 < getattr(chosen, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')}: {getattr(chosen, name)} is not valid; allowed: more than 0")
    mix = Mix(chosen.jobs, slots, chosen.load, chosen.users, chosen.mean_seconds)
    table = Table("policy", "in use", "wait p50", "p95", "longest", "suspended", "resized", title=f"{slots} slots")
    for policy in track(sorted(POLICIES), description="simulating", console=Console(stderr=True), transient=True):
        group = InstanceGroup("imagined", "imagined", chosen.slots_per_host, hosts=chosen.hosts, policy=policy)
        outcome = asyncio.run(ImaginedCluster(group, draw(mix, chosen.seed)).run())
        table.add_row(policy, *_cells(outcome))
    Console().print(table)
    return 0


def _cells(outcome: Outcome) -> list[str]:
    waits = sorted(outcome.wait_seconds(job_id) for job_id in outcome.started_at)
    return [
        f"{outcome.utilization:.1%}",
        f"{statistics.median(waits):.0f} s",
        f"{waits[int(0.95 * (len(waits) - 1))]:.0f} s",
        f"{waits[-1]:.0f} s",
        str(outcome.suspensions),
        str(outcome.resizes),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
