"""What the queue costs: decisions however much waits, submissions that last, and a cluster of thousands of hosts."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import grpc
from application_pages import measure_application_pages
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from exec_latency import scheduling_service
from report import Row, announce
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.policies.registry import POLICIES
from scheduling_service.simulation.cluster import Arrival, ImaginedCluster, Outcome
from scheduling_service.simulation.traces import Mix, draw
from servicekit.identity import Identity, headers_for

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench"
PLOTS = HERE.parent / "docs" / "plots"
MATPLOTLIB = "matplotlib==3.11.1"
QUEUED, SLOTS, DECISIONS = 10_000, 1_000, 400
SUBMISSIONS, SUBMITTERS = 3_000, 32
HOSTS, SLOTS_PER_HOST, MANY_JOBS = 5_000, 8, 100_000
MINUTES = 15.0


def measure_scheduling() -> list[Row]:
    """Rows of the section `scheduling`."""
    return [
        *measure_decisions(),
        measure_submissions(),
        *measure_application_pages(),
        measure_many_hosts(),
    ]


def measure_decisions() -> list[Row]:
    """Steps of the real queue on 1,000 slots while so many wait; every step follows the end or the start of a job."""
    announce(f"{DECISIONS} decisions with {QUEUED:,} jobs in the queue, and with a quarter and four times as many")
    medians = {queued: _median_decision_ms(queued) for queued in (QUEUED // 4, QUEUED, QUEUED * 4)}
    growth = medians[QUEUED * 4] / medians[QUEUED]
    allowed = 4 * math.log(QUEUED * 4) / math.log(QUEUED)
    return [
        Row(
            f"a decision, {QUEUED:,} jobs queued on {SLOTS:,} slots, p50",
            f"{medians[QUEUED]:.2f} ms",
            f"{medians[QUEUED // 4]:.2f} ms with {QUEUED // 4:,} queued",
            f"{medians[QUEUED] / medians[QUEUED // 4]:.2f}",
            "at most 10 ms",
            medians[QUEUED] <= 10,
        ),
        Row(
            f"a decision, {QUEUED * 4:,} jobs queued, p50",
            f"{medians[QUEUED * 4]:.2f} ms",
            f"{medians[QUEUED]:.2f} ms with {QUEUED:,} queued",
            f"{growth:.2f}",
            f"at most {allowed:.1f} (n log n)",
            growth <= allowed,
        ),
    ]


def _median_decision_ms(queued: int) -> float:
    # All come at once, so that the whole crowd waits; three hundred more than the cluster takes.
    arrivals = [replace(arrival, at_seconds=0.0) for arrival in draw(Mix(queued + 1_000, SLOTS, users=20), seed=5)]
    cluster = ImaginedCluster(InstanceGroup("g", "bench", 10, hosts=SLOTS // 10), arrivals)
    outcome = asyncio.run(cluster.run(DECISIONS))
    # The first step reads everything.
    times = [seconds for waiting, seconds in outcome.decisions[1:] if waiting >= 0.9 * queued]
    if len(times) < DECISIONS // 2:
        raise RuntimeError(f"only {len(times)} decisions were made while {queued} jobs waited")
    return statistics.median(times) * 1e3


def measure_submissions() -> Row:
    """SubmitJob from several callers at once, answered when the row is on the disk, against one row a transaction."""
    announce(f"{SUBMISSIONS} submissions by {SUBMITTERS} callers")
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with scheduling_service(home) as submit:
            program = home / "work" / "sleep.py"
            program.write_text("import time; time.sleep(600)")
            for number in range(4):  # all slots: what follows waits
                submit(f"sleep{number}", program)
            address = (home / "address").read_text()
            secret = (home / "secret").read_text().strip()
            try:
                rate = asyncio.run(_submit_many(address, secret, home))
            finally:
                asyncio.run(_stop(address, secret))
        bare = _bare_inserts(home / "bare.sqlite")
    return Row(
        f"submissions that are on the disk when answered, {SUBMITTERS} callers",
        f"{rate:.0f} jobs/s",
        f"{bare:.0f} rows/s inserted one by one into bare SQLite",
        f"{rate / bare:.2f}",
        "at least 300 jobs/s",
        rate >= 300,
    )


def _metadata(secret: str) -> tuple[tuple[str, str], ...]:
    return tuple(headers_for(Identity.service("training"), secret, "training"))


async def _submit_many(address: str, secret: str, home: Path) -> float:
    metadata = _metadata(secret)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        spec = jobs_pb2.JobSpec(
            name="one of many", kind="exec", owner="Admin", ranks=1, command=["true"], working_directory=str(home)
        )

        async def caller(numbers: range) -> None:
            for number in numbers:
                request = jobs_pb2.SubmitJobRequest(job_id=f"many{number}", spec=spec)
                await stub.SubmitJob(request, metadata=metadata)

        began = time.perf_counter()
        await asyncio.gather(*(caller(range(first, SUBMISSIONS, SUBMITTERS)) for first in range(SUBMITTERS)))
        return SUBMISSIONS / (time.perf_counter() - began)


async def _stop(address: str, secret: str) -> None:
    """What sleeps must not outlive the benchmark."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        for number in range(4):
            await stub.StopJob(jobs_pb2.StopJobRequest(job_id=f"sleep{number}"), metadata=_metadata(secret))
        while True:
            ids = [f"sleep{number}" for number in range(4)]
            answer = await stub.GetJobs(jobs_pb2.GetJobsRequest(job_ids=ids), metadata=_metadata(secret))
            if all(job.state == "KILLED" for job in answer.jobs):
                return
            await asyncio.sleep(0.05)


def _bare_inserts(path: Path) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, row TEXT)")
    row = "x" * 1500
    began = time.perf_counter()
    for number in range(500):
        connection.execute("INSERT INTO jobs VALUES (?, ?)", (str(number), row))
    rate = 500 / (time.perf_counter() - began)
    connection.close()
    return rate


def measure_many_hosts() -> Row:
    """100,000 jobs on 5,000 hosts through the real queue, and what it looked like; then the policies side by side."""
    announce(f"{MANY_JOBS:,} jobs on {HOSTS:,} imagined hosts")
    mix = Mix(
        MANY_JOBS, HOSTS * SLOTS_PER_HOST, load=0.95, users=50, sizes=(1, 1, 1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256)
    )
    group = InstanceGroup("g", "bench", SLOTS_PER_HOST, hosts=HOSTS)
    began = time.perf_counter()
    outcome = asyncio.run(ImaginedCluster(group, draw(mix, seed=1), tick_seconds=5.0).run())
    minutes = (time.perf_counter() - began) / 60
    ended = sum(job.state.is_final for job in outcome.jobs.values())
    decided = statistics.median(seconds for _, seconds in outcome.decisions) * 1e3
    _plot({"many-hosts": _curves(outcome)}, _policies())
    return Row(
        f"{MANY_JOBS:,} jobs on {HOSTS:,} hosts through the real queue, imagined clock",
        f"{minutes:.1f} min, {decided:.2f} ms a step (p50), {outcome.utilization:.0%} in use",
        f"{outcome.makespan_seconds / 3600:.1f} h of imagined time",
        f"{minutes * 60 / outcome.makespan_seconds:.4f}",
        f"every job ends, at most {MINUTES:.0f} min",
        ended == MANY_JOBS and minutes <= MINUTES,
    )


def _curves(outcome: Outcome) -> dict[str, list[float]]:
    step = max(1, len(outcome.load) // 2_000)
    load = outcome.load[::step]
    return {
        "hours": [at / 3600 for at, _, _ in load],
        "used": [used / outcome.slots for _, used, _ in load],
        "waiting": [float(waiting) for _, _, waiting in load],
    }


def _policies() -> dict[str, dict[str, list[float]]]:
    """Waits of a light user beside a heavy one, of large and small gangs, under each policy."""
    flood = draw(Mix(1_500, 64, load=1.4, users=1, elastic_part=0.3), seed=2)
    light = [
        Arrival(
            arrival.at_seconds, f"light{number:05}", replace(arrival.spec, owner="light user"), arrival.rank_seconds
        )
        for number, arrival in enumerate(draw(Mix(150, 64, load=0.14, users=1), seed=3))
    ]
    found = {}
    for policy in sorted(POLICIES):
        group = InstanceGroup("g", "bench", 8, hosts=8, policy=policy)
        outcome = asyncio.run(ImaginedCluster(group, [*flood, *light]).run())
        jobs = outcome.jobs.values()
        found[policy] = {
            "light user": sorted(outcome.wait_seconds(job.id) for job in jobs if job.spec.owner == "light user"),
            "heavy user": sorted(outcome.wait_seconds(job.id) for job in jobs if job.spec.owner != "light user"),
            "urgent": sorted(outcome.wait_seconds(job.id) for job in jobs if job.spec.priority >= 20),
            "16 ranks and more": sorted(outcome.wait_seconds(job.id) for job in jobs if job.spec.ranks >= 16),
        }
    return found


def _plot(load: dict[str, dict[str, list[float]]], waits: dict[str, dict[str, list[float]]]) -> None:
    """Drawn by a process of the benchmark's own environment."""
    install_matplotlib()
    PLOTS.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, str(HERE / "draw_plots.py"), str(PLOTS)],
        input=json.dumps({"load": load, "waits": waits}),
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PEERS / "plotting")},
    )


def install_matplotlib() -> None:
    """Into a folder beside the other things that only benchmarks need."""
    done = PEERS / "plotting-installed"
    if not done.exists() or done.read_text() != MATPLOTLIB:
        command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--no-warn-conflicts"]
        subprocess.check_call([sys.executable, *command, "--target", str(PEERS / "plotting"), MATPLOTLIB])
        done.write_text(MATPLOTLIB)


if __name__ == "__main__":
    for measured in measure_scheduling():
        print(" | ".join(measured.cells))
