"""Queue a job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from servicekit.errors import invalid

from scheduling_service.domain.gpus import WHOLE, allocate
from scheduling_service.domain.job import Job, Spec
from scheduling_service.usecases.ports import Groups, Jobs


class SubmitJob:
    """Idempotent on the id that the caller made."""

    def __init__(self, jobs: Jobs, groups: Groups, now: Callable[[], datetime], wake: Callable[[], None]) -> None:
        self._jobs, self._groups, self._now, self._wake = jobs, groups, now, wake

    async def __call__(self, job_id: str, spec: Spec, instance_group: str) -> Job:
        """The stored job; 400 when it can never run."""
        if not job_id or not job_id.isalnum() or len(job_id) > 64:
            raise invalid("job_id", job_id, "1 to 64 letters and digits")
        group = await self._groups.get(instance_group)
        if not spec.command:
            raise invalid("command", "", "a program and its arguments")
        if spec.ranks < 1:
            raise invalid("clusterSize", spec.ranks, "1 or more")
        if not 0 <= spec.min_ranks <= spec.ranks:
            raise invalid("min_ranks", spec.min_ranks, f"0 to {spec.ranks}, the most ranks")
        if spec.fewest_ranks > group.slots:
            allowed = f"1 to {group.slots}, the slots of instance group {group.name!r}"
            raise invalid("clusterSize", spec.fewest_ranks, allowed)
        for field, value in (
            ("max_silent_seconds", spec.max_silent_seconds),
            ("max_disk_bytes", spec.max_disk_bytes),
            ("gpus_per_rank", spec.gpus_per_rank),
        ):
            # Written so that a NaN is refused, too.
            if not 0 <= value < float("inf"):
                raise invalid(field, value, "0 or more")
        if not 0 <= spec.gpu_percentage <= 100:
            raise invalid("gpu_percentage", spec.gpu_percentage, "0 to 100")
        if group.gpus:
            fitting = len(allocate([WHOLE] * group.gpus, spec.fewest_ranks, spec.gpus_of_rank, spec.gpu_share))
            if fitting < spec.fewest_ranks:
                has = f"what fits on the {group.gpus} GPUs of instance group {group.name!r}: {fitting} such ranks"
                raise invalid("clusterSize", spec.fewest_ranks, has)
        job = await self._jobs.add(Job(job_id, spec, group.id, self._now()))
        self._wake()
        return job
