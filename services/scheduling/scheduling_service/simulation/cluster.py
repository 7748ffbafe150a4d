"""An imagined cluster: jobs arrive, run and end on a clock of its own; who runs when is decided by the real queue."""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from servicekit.reconcile import Next

from scheduling_service.domain.gpus import WHOLE
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Job, Progress, Rank, Reported, Spec, State
from scheduling_service.domain.observation import Observation, Phase
from scheduling_service.usecases.run_queue import RunQueue

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
# From the wish to stop to the end of the ranks, and from there to the first step of the next attempt.
STOP_SECONDS = 1.0
RESTART_SECONDS = 5.0
# How often the loop looks when nothing happens: retries, growth and suspension depend on the time.
IDLE_LOOK_SECONDS = 20.0


@dataclass(frozen=True)
class Arrival:
    """A job that comes `at_seconds` after the beginning and computes `rank_seconds` on all its ranks together.

    Of its attempts the first `failures` fail halfway. An elastic one goes on where it was; others begin anew.
    """

    at_seconds: float
    job_id: str
    spec: Spec
    rank_seconds: float
    failures: int = 0


class BrokenPromiseError(AssertionError):
    """The queue did what it must never do."""


@dataclass
class Outcome:
    """What became of the jobs, and what the cluster looked like meanwhile.

    `load` has, for each moment, the slots that were used and how many jobs waited; `decisions` how many waited at each
    step of the queue that changed anything, and the seconds that it really took. All others are of the imagined clock.
    """

    slots: int
    jobs: Mapping[str, Job]
    started_at: Mapping[str, float]
    load: Sequence[tuple[float, int, int]]
    decisions: Sequence[tuple[int, float]]
    suspensions: int
    resizes: int

    def wait_seconds(self, job_id: str) -> float:
        """From the submission to the first start."""
        return self.started_at[job_id] - (self.jobs[job_id].created_at - BEGINNING).total_seconds()

    @property
    def makespan_seconds(self) -> float:
        """To the end of the last job."""
        return max((job.ended_at - BEGINNING).total_seconds() for job in self.jobs.values() if job.ended_at)

    @property
    def utilization(self) -> float:
        """Part of the slots that was used from the beginning to the end of the last job."""
        used = sum(held * (later - at) for (at, held, _), (later, _, _) in zip(self.load, self.load[1:], strict=False))
        return used / (self.slots * self.load[-1][0]) if self.load and self.load[-1][0] else 0.0


@dataclass
class _Attempt:
    job: Job
    ranks: int
    begins_at: float
    ends_at: float
    fails: bool
    phase: Phase = Phase.RUNNING
    is_stopping: bool = False
    serial: int = 0


class ImaginedCluster:
    """Runs a trace to its end.

    BrokenPromiseError when more is given out than there is, a gang is torn or a job starves. It is the queue's ports:
    rows in memory, and an engine that computes by looking at the clock.
    """

    def __init__(
        self,
        group: InstanceGroup,
        arrivals: Iterable[Arrival],
        shares: Sequence[UserShare] = (),
        *,
        grow_after_seconds: float = 60.0,
        tick_seconds: float = 0.0,
        patience_seconds: float = 10 * 365 * 86400.0,
    ) -> None:
        self.group, self._shares = group, shares
        self._arrivals = sorted(arrivals, key=lambda arrival: (arrival.at_seconds, arrival.job_id))
        self._by_id = {arrival.job_id: arrival for arrival in self._arrivals}
        self._left = {arrival.job_id: arrival.rank_seconds for arrival in self._arrivals}
        self._failures = {arrival.job_id: arrival.failures for arrival in self._arrivals}
        # Happenings within a tick are seen together, as a loop does that looks now and then.
        self._tick_seconds, self._patience_seconds = tick_seconds, patience_seconds
        self._clock = 0.0
        self._rows: dict[str, Job] = {}
        self._order: list[Job] = []
        self._attempts: dict[str, _Attempt] = {}
        self._ends: list[tuple[float, int, str]] = []
        self._serial = 0
        self._news: dict[str, None] = {}
        self._unended = 0
        self._used = 0
        self._devices = [0] * group.gpus
        self._started_at: dict[str, float] = {}
        self._load: list[tuple[float, int, int]] = []
        self.suspensions = self.resizes = 0
        ports: Any = self  # as much of them as the queue uses
        self.queue = RunQueue(
            ports, ports, ports, _NoFiles(), self._now, "simulation", grow_after_seconds, lease_seconds=1e9
        )

    async def run(self, most_decisions: int = 0) -> Outcome:
        """To the end of the last job, or for so many decisions."""
        decisions: list[tuple[int, float]] = []
        coming = 0
        while coming < len(self._arrivals) or self._unended:
            if most_decisions and len(decisions) >= most_decisions:
                break
            self._clock = self._next_moment(coming)
            if self._clock > self._patience_seconds:
                waiting = [job.id for job in self._rows.values() if not job.state.is_final]
                raise BrokenPromiseError(f"{len(waiting)} jobs never ended: {', '.join(waiting[:5])}")
            while coming < len(self._arrivals) and self._arrivals[coming].at_seconds <= self._clock:
                self._submit(self._arrivals[coming])
                coming += 1
            self._end_attempts()
            outlook = Next.AT_ONCE
            while outlook is Next.AT_ONCE:
                queued, began = self._unended - len(self._attempts), time.perf_counter()
                outlook = await self.queue.step()
                if outlook is Next.AT_ONCE:
                    decisions.append((queued, time.perf_counter() - began))
            self._load.append((self._clock, self._used, self._unended - len(self._attempts)))
        return Outcome(
            self.group.slots, self._rows, self._started_at, self._load, decisions, self.suspensions, self.resizes
        )

    def _next_moment(self, coming: int) -> float:
        moments = [self._ends[0][0]] if self._ends else []
        if coming < len(self._arrivals):
            moments.append(self._arrivals[coming].at_seconds)
        if self._unended:
            moments.append(self._clock + IDLE_LOOK_SECONDS)
        return max(min(moments), self._clock + self._tick_seconds)

    def _submit(self, arrival: Arrival) -> None:
        job = Job(
            arrival.job_id,
            arrival.spec,
            self.group.id,
            BEGINNING + timedelta(seconds=arrival.at_seconds),
            sequence=len(self._order) + 1,
            waits_for=arrival.spec.after,
        )
        self._rows[job.id] = job
        self._order.append(job)
        self._unended += 1

    def _end_attempts(self) -> None:
        while self._ends and self._ends[0][0] <= self._clock:
            _, serial, job_id = heapq.heappop(self._ends)
            attempt = self._attempts.get(job_id)
            # One that was asked to stop meanwhile ends by another entry.
            if attempt is not None and attempt.serial == serial:
                if attempt.is_stopping:
                    attempt.phase = Phase.STOPPED
                else:
                    attempt.phase = Phase.FAILED if attempt.fails else Phase.FINISHED
                self._news[job_id] = None

    def _now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._clock)

    # The queue's Groups.

    async def all(self, *, fresh: bool = False) -> Sequence[InstanceGroup]:
        return [self.group]

    async def shares(self, group_id: str) -> Sequence[UserShare]:
        return self._shares

    async def set_runs_next(self, group_id: str, name: str) -> None:
        pass

    # The queue's Jobs.

    async def lead(self, holder: str, seconds: float, now: datetime) -> bool:
        return True

    async def active(self) -> Sequence[Job]:
        return [job for job in self._order if not job.state.is_final]

    async def news(self, after_sequence: int) -> Sequence[Job]:
        return [job for job in self._order[after_sequence:] if not job.state.is_final]

    async def find(self, job_ids: Collection[str]) -> Sequence[Job]:
        return [self._rows[job_id] for job_id in job_ids if job_id in self._rows]

    async def progress(self, job_ids: Collection[str]) -> Mapping[str, Progress]:
        return {job_id: self._progress(job_id) for job_id in job_ids}

    async def begin(self, job: Job) -> None:
        self._started_at.setdefault(job.id, self._clock)

    async def save(self, job: Job) -> None:
        if job.state.is_final:
            self._unended -= 1
        elif job.state is State.RUNNING and job.suspending:
            self.suspensions += 1
        elif job.state is State.RUNNING and job.resizing:
            self.resizes += 1

    async def save_reasons(self, jobs: Collection[Job]) -> None:
        pass

    async def report(self, job_id: str, attempt: int, reported: Reported) -> None:
        pass

    # The queue's Runner.

    def due(self, running: Iterable[Job]) -> Iterable[Job]:
        # Without looking at those that run, of which there are thousands.
        news, self._news = self._news, {}
        return [self._rows[job_id] for job_id in news]

    async def launch(self, job: Job, group: InstanceGroup) -> None:
        if job.id in self._attempts:
            raise BrokenPromiseError(f"two attempts of {job.id} run at once")
        ranks, spec = job.current_ranks, job.spec
        if not spec.fewest_ranks <= ranks <= spec.ranks:
            raise BrokenPromiseError(f"{job.id} runs with {ranks} ranks, asked for {spec.fewest_ranks} to {spec.ranks}")
        for other in spec.after:
            if self._rows[other].state is not State.FINISHED:
                raise BrokenPromiseError(f"{job.id} runs before {other} has finished")
        self._take(job, 1)
        left = self._left[job.id]
        fails = self._failures[job.id] > 0
        if fails:
            self._failures[job.id] -= 1
            left /= 2
        begins_at = self._clock + (RESTART_SECONDS if job.attempt > 1 else 0.0)
        self._serial += 1
        attempt = _Attempt(job, ranks, begins_at, begins_at + left / ranks, fails, serial=self._serial)
        self._attempts[job.id] = attempt
        heapq.heappush(self._ends, (attempt.ends_at, attempt.serial, job.id))

    async def observe(self, job: Job, group: InstanceGroup) -> Observation:
        attempt = self._attempts.get(job.id)
        if attempt is None:
            return Observation(Phase.UNKNOWN)
        if attempt.phase is Phase.RUNNING:
            return Observation(Phase.RUNNING)
        del self._attempts[job.id]
        self._take(job, -1)
        code = {Phase.FINISHED: 0, Phase.FAILED: 1}.get(attempt.phase, 143)
        ranks = [Rank(rank, 1, code) for rank in range(attempt.ranks)]
        return Observation(attempt.phase, "rank 0 exited with code 1" if code == 1 else "", ranks)

    async def stop(self, job: Job, group: InstanceGroup) -> None:
        attempt = self._attempts.get(job.id)
        if (
            attempt is None
            or attempt.phase is not Phase.RUNNING
            or attempt.is_stopping
            or attempt.ends_at <= self._clock + STOP_SECONDS
        ):
            return
        if job.spec.is_elastic:
            done = max(0.0, self._clock - attempt.begins_at) * attempt.ranks
            self._left[job.id] = max(0.0, self._left[job.id] - done)
        self._serial += 1
        attempt.is_stopping, attempt.serial = True, self._serial
        heapq.heappush(self._ends, (self._clock + STOP_SECONDS, attempt.serial, job.id))

    def _progress(self, job_id: str) -> Progress:
        attempt = self._attempts.get(job_id)
        done = max(0.0, self._clock - attempt.begins_at) * attempt.ranks if attempt else 0.0
        total = self._by_id[job_id].rank_seconds
        return Progress(total - self._left[job_id] + done, total)

    def _take(self, job: Job, sign: int) -> None:
        self._used += sign * job.current_ranks
        if self._used > self.group.slots:
            raise BrokenPromiseError(f"{self._used} of {self.group.slots} slots are given out")
        for devices in job.gpus:
            if len({device // self.group.gpus_per_host for device in devices}) > 1:
                raise BrokenPromiseError(f"a rank of {job.id} has devices on two hosts")
            for device in devices:
                self._devices[device] += sign * job.spec.gpu_share
                if self._devices[device] > WHOLE:
                    raise BrokenPromiseError(f"{self._devices[device]} % of GPU {device} are given out")


class _NoFiles:
    """The queue's RunDirectories."""

    def of(self, job_id: str) -> Path:
        raise NotImplementedError

    def attempt(self, job: Job) -> Path:
        raise NotImplementedError

    def open_output(self, job: Job, path: str) -> BinaryIO:
        raise NotImplementedError

    def remove(self, job_id: str) -> None:
        raise NotImplementedError

    def report(self, job: Job) -> Reported:
        return Reported()

    def tail(self, job: Job, rank: int, lines: int) -> str:
        return ""
