"""Queue a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from servicekit.errors import ServiceError, invalid
from servicekit.jobs import MAX_PRIORITY, MAX_SECONDS

from scheduling_service.domain.gpus import most_ranks
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Spec
from scheduling_service.usecases.ports import Groups, Jobs

MAX_TEXT_BYTES = 2000
MAX_DEPENDENCIES = 100


class SubmitJob:
    """Idempotent on the id that the caller made."""

    def __init__(self, jobs: Jobs, groups: Groups, now: Callable[[], datetime], wake: Callable[[], None]) -> None:
        self._jobs, self._groups, self._now, self._wake = jobs, groups, now, wake

    async def __call__(self, job_id: str, spec: Spec, instance_group: str) -> Job:
        """The stored job; 400 when it can never run."""
        if not job_id or not job_id.isalnum() or len(job_id) > 64:
            raise invalid("job_id", job_id, "1 to 64 letters and digits")
        spec = replace(spec, after=list(dict.fromkeys(spec.after)))
        try:
            group = await self.check(job_id, spec, instance_group)
        except ServiceError:
            # Submitted again, after its group or a quota became smaller.
            if known := await self._jobs.find([job_id]):
                return known[0]
            raise
        job = await self._jobs.add(Job(job_id, spec, group.id, self._now(), waits_for=spec.after))
        self._wake()
        return job

    async def check(self, job_id: str, spec: Spec, instance_group: str) -> InstanceGroup:
        """Its group; 400 when the job could never run."""
        group = await self._groups.get(instance_group)
        if not spec.command:
            raise invalid("command", "", "a program and its arguments")
        _check_texts(spec)
        _check_numbers(spec)
        await self._check_room(spec, group)
        await self._check_dependencies(job_id, spec)
        return group

    async def _check_room(self, spec: Spec, group: InstanceGroup) -> None:
        needed = spec.fewest_ranks
        if needed > group.slots:
            raise invalid("clusterSize", needed, f"1 to {group.slots}, the slots of instance group {group.name!r}")
        share = next((share for share in await self._groups.shares(group.id) if share.user == spec.owner), None)
        quota = (share.max_slots if share else 0) or group.max_slots_per_user
        if quota and needed > quota:
            raise invalid("clusterSize", needed, f"1 to {quota}, the quota of {spec.owner} in {group.name!r}")
        if group.gpus:
            most = most_ranks(group.hosts, group.gpus_per_host, spec.gpus_of_rank, spec.gpu_share)
            if most is not None and most < needed:
                of = f"{group.gpus_per_host} GPUs of each host" if group.hosts > 1 else f"{group.gpus} GPUs"
                has = f"what fits on the {of} of instance group {group.name!r}: {most} such ranks"
                raise invalid("clusterSize", needed, has)

    async def _check_dependencies(self, job_id: str, spec: Spec) -> None:
        if len(spec.after) > MAX_DEPENDENCIES:
            raise invalid("after", len(spec.after), f"at most {MAX_DEPENDENCIES} jobs")
        known = {job.id: job for job in await self._jobs.find(spec.after)} if spec.after else {}
        for other in spec.after:
            if other == job_id or other not in known:
                raise invalid("after", other, "the id of a job that was submitted before")
            if known[other].spec.owner != spec.owner:
                raise invalid("after", other, "a job of the same user")


def _check_texts(spec: Spec) -> None:
    for field in ("name", "application_name", "model", "dataset", "framework", "study"):
        value = getattr(spec, field)
        # Indexes of PostgreSQL take no longer entries, and it takes no NUL at all; jobs are stored many at once.
        if len(value.encode()) > MAX_TEXT_BYTES or "\0" in value:
            raise invalid(field, value, f"at most {MAX_TEXT_BYTES} bytes, none of them 0")


def _check_numbers(spec: Spec) -> None:
    if spec.ranks < 1:
        raise invalid("clusterSize", spec.ranks, "1 or more")
    if not 0 <= spec.min_ranks <= spec.ranks:
        raise invalid("min_ranks", spec.min_ranks, f"0 to {spec.ranks}, the most ranks")
    for field, seconds in (
        ("maxSeconds", spec.max_seconds),
        ("max_silent_seconds", spec.max_silent_seconds),
        ("grace_seconds", spec.grace_seconds),
    ):
        if not 0 <= seconds <= MAX_SECONDS:
            raise invalid(field, seconds, f"0 to {MAX_SECONDS}")
    for field, value in (
        ("max_restarts", spec.max_restarts),
        ("max_disk_bytes", spec.max_disk_bytes),
        ("gpus_per_rank", spec.gpus_per_rank),
        ("memory_bytes_per_rank", spec.memory_bytes_per_rank),
        ("cores_per_rank", spec.cores_per_rank),
    ):
        # Written so that a NaN is refused, too.
        if not 0 <= value < float("inf"):
            raise invalid(field, value, "0 or more")
    if not 0 <= spec.gpu_percentage <= 100:
        raise invalid("gpu_percentage", spec.gpu_percentage, "0 to 100")
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        raise invalid("priority", spec.priority, f"{-MAX_PRIORITY} to {MAX_PRIORITY}")
