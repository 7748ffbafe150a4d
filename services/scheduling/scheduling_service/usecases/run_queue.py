"""One step of the loop: settle what ended, stop what should, start what fits."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from servicekit.reconcile import Next

from scheduling_service.domain.gpus import free_shares
from scheduling_service.domain.job import InstanceGroup, Job, Rank, State
from scheduling_service.domain.policy import Running, Waiting, plan
from scheduling_service.usecases.ports import Groups, Jobs, RunDirectories, Runner

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
TAIL_LINES = 20
# How long an elastic gang runs, and slots stay free, before it grows: a restart costs seconds.
GROW_AFTER_SECONDS = 5.0


class RunQueue:
    """The only caller of the engine; may be killed anywhere: a step looks at rows and at the engine, never back."""

    def __init__(
        self,
        jobs: Jobs,
        groups: Groups,
        runner: Runner,
        directories: RunDirectories,
        now: Callable[[], datetime],
        holder: str,
        grow_after_seconds: float = GROW_AFTER_SECONDS,
    ) -> None:
        self._jobs, self._groups, self._runner, self._directories = jobs, groups, runner, directories
        self._now, self._holder, self._grow_after_seconds = now, holder, grow_after_seconds
        self._leads_until: datetime | None = None
        # By group: since when nobody waits and a slot is free.
        self._idle_since: dict[str, datetime] = {}

    async def step(self) -> Next:
        active = await self._jobs.active()
        if not active or not await self._lead():
            return Next.LATER
        changed = False
        groups = {group.id: group for group in await self._groups.all()}
        for job in active:
            try:
                changed |= await self._tend(job, groups[job.group_id])
            except Exception:
                # One bad job must not hold up the queue.
                log.exception("job %s could not be tended", job.id)
        changed = await self._start(active, groups.values()) or changed
        if changed:
            return Next.AT_ONCE
        return Next.SOON if any(job.state is State.RUNNING for job in active) else Next.LATER

    async def _lead(self) -> bool:
        now = self._now()
        if self._leads_until is None or now > self._leads_until - timedelta(seconds=LEASE_SECONDS / 2):
            if not await self._jobs.lead(self._holder, LEASE_SECONDS, now):
                return False
            self._leads_until = now + timedelta(seconds=LEASE_SECONDS)
        return True

    async def _tend(self, job: Job, group: InstanceGroup) -> bool:
        if job.state is State.SUBMITTED:
            if job.stop_requested:
                job.kill("stopped" if job.attempt else "stopped before it was started", self._now())
                await self._jobs.save(job)
                return True
            return False
        seen = await self._runner.observe(job, group)
        match seen.phase.name:
            case "UNKNOWN":
                # The row said RUNNING and then we were killed: launch now what was decided then.
                if not (job.stop_requested or job.resizing):
                    await self._runner.launch(job, group)
                    return True
                # A launch that was under way must not come late.
                await self._runner.stop(job, group)
                if (await self._runner.observe(job, group)).phase.name != "UNKNOWN":
                    return True
                if job.stop_requested:
                    job.kill("stopped before it was started", self._now())
                else:
                    job.resume()
                await self._jobs.save(job)
                return True
            case "STARTING" | "RUNNING":
                if job.stop_requested or job.resizing:
                    await self._runner.stop(job, group)
                return False
        await self._settle(job, seen)
        return True

    async def _settle(self, job: Job, seen: Any) -> None:
        # Facts that could not be pushed while we were away lie in the spool.
        await self._jobs.report(job.id, job.attempt, await asyncio.to_thread(self._directories.report, job))
        now = self._now()
        job.ranks = [Rank(row.rank, row.pid, row.exit_code) for row in seen.ranks]
        phase = seen.phase.name
        if phase == "FINISHED":
            job.finish(now)
        elif job.stop_requested:
            job.kill("stopped", now)
        elif phase == "STOPPED" and job.resizing:
            # With code 0 everywhere the program says that it is done, asked to end or not.
            if job.ranks and all(rank.exit_code == 0 for rank in job.ranks):
                job.finish(now)
            else:
                job.resume()
        elif phase == "FAILED":
            failed = seen.failed_rank if seen.failed_rank is not None else 0
            job.log_tail = await asyncio.to_thread(self._directories.tail, job, failed, TAIL_LINES)
            # By its exit code a program says that its input will not do: it would fail again.
            final = seen.final or any(rank.exit_code == os.EX_DATAERR for rank in job.ranks)
            reason = seen.reason or "the program failed"
            job.fail_program(reason, self._retry_at(job, now), now, final=final)
        else:  # LOST, or stopped by somebody else than us: a machine going down, say
            job.lose(seen.reason or "the ranks were stopped from outside", self._retry_at(job, now), now)
        await self._jobs.save(job)
        log.info("job %s (%s): attempt %d is %s %s", job.id, job.spec.name, job.attempt, job.state, job.reason)

    def _retry_at(self, job: Job, now: datetime) -> datetime:
        return now + timedelta(seconds=job.retry_seconds())

    async def _start(self, active: Sequence[Job], groups: Iterable[InstanceGroup]) -> bool:
        changed = False
        now = self._now()
        for group in groups:
            mine = [job for job in active if job.group_id == group.id]
            running = {job.id: job for job in mine if job.state is State.RUNNING}
            waiting = {job.id: job for job in mine if job.state is State.SUBMITTED}
            decided = plan(
                [_waiting(job, group, now) for job in waiting.values()],
                [_running(job, group, now) for job in running.values()],
                group.slots,
                idle_seconds=self._idle_seconds(group, mine, now),
                grow_after_seconds=self._grow_after_seconds,
                free_gpus=free_shares(group.gpus, [(job.gpus, job.spec.gpu_share) for job in running.values()]),
            )
            for job_id, ranks in decided.start.items():
                job = waiting[job_id]
                job.start(ranks, now, decided.gpus[job_id] if _gpus_of_rank(job, group) else ())
                # The row first: after a kill here the next step finds the attempt UNKNOWN and launches it.
                await self._jobs.begin(job)
                await self._runner.launch(job, group)
                changed = True
            for job_id, reason in decided.resize.items():
                job = running[job_id]
                job.resize(reason)
                # The row first, here too: whoever reads it next asks the gang to end.
                await self._jobs.save(job)
                await self._runner.stop(job, group)
                log.info("job %s (%s): attempt %d %s", job.id, job.spec.name, job.attempt, reason)
                changed = True
            for job_id, reason in decided.reasons.items():
                job = waiting[job_id]
                if job.wait(reason):
                    await self._jobs.save(job)
        return changed

    def _idle_seconds(self, group: InstanceGroup, jobs: Sequence[Job], now: datetime) -> float:
        used = sum(job.current_ranks for job in jobs if job.state is State.RUNNING)
        if used >= group.slots or any(job.state is State.SUBMITTED for job in jobs):
            self._idle_since.pop(group.id, None)
            return 0.0
        return (now - self._idle_since.setdefault(group.id, now)).total_seconds()


def _waiting(job: Job, group: InstanceGroup, now: datetime) -> Waiting:
    delay = (job.not_before - now).total_seconds() if job.not_before else 0.0
    return Waiting(
        job_id=job.id,
        name=_name(job),
        ranks=job.spec.ranks,
        delayed_seconds=max(0.0, delay),
        fewest=job.spec.fewest_ranks,
        resizing=job.resizing,
        gpus=_gpus_of_rank(job, group),
        gpu_share=job.spec.gpu_share,
    )


def _running(job: Job, group: InstanceGroup, now: datetime) -> Running:
    since = job.attempt_started_at or now
    return Running(
        job_id=job.id,
        name=_name(job),
        ranks=job.current_ranks,
        fewest=job.spec.min_ranks if job.spec.is_elastic else 0,
        most=job.spec.ranks if job.spec.is_elastic else 0,
        settled_seconds=(now - since).total_seconds(),
        done=job.progress.done / job.progress.total if job.progress.total > 0 else 0.0,
        resizing=job.resizing,
        gpus=_gpus_of_rank(job, group),
        gpu_share=job.spec.gpu_share,
        placement=job.gpus,
        leaving=job.stop_requested,
    )


def _gpus_of_rank(job: Job, group: InstanceGroup) -> int:
    """Where there are no GPUs a job that asks for them runs on slots all the same."""
    return job.spec.gpus_of_rank if group.gpus else 0


def _name(job: Job) -> str:
    return job.spec.application_name or job.spec.name
