"""Between protos and the domain, both ways side by side."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from dlmesh.scheduling.v1 import jobs_pb2

from scheduling_service.domain.application import application_id, driver_id
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Progress, Reported, Spec


def spec_from_proto(spec: jobs_pb2.JobSpec) -> Spec:
    return Spec(
        name=spec.name,
        kind=spec.kind,
        owner=spec.owner,
        ranks=spec.ranks or 1,
        gpus_per_rank=spec.gpus_per_rank,
        command=list(spec.command),
        environment=dict(spec.environment),
        working_directory=spec.working_directory,
        max_restarts=spec.max_restarts,
        grace_seconds=spec.grace_seconds or 10.0,
        warm=spec.warm,
        model=spec.model,
        dataset=spec.dataset,
        framework=spec.framework,
        max_seconds=spec.max_seconds,
        application_name=spec.application_name,
        min_ranks=spec.min_ranks,
        max_silent_seconds=spec.max_silent_seconds,
        max_disk_bytes=spec.max_disk_bytes,
        gpu_percentage=spec.gpu_percentage,
        priority=spec.priority,
        after=list(spec.after),
        memory_bytes_per_rank=spec.memory_bytes_per_rank,
        cores_per_rank=spec.cores_per_rank,
        study=spec.study,
    )


def reported_from_proto(request: jobs_pb2.ReportJobRequest) -> Reported:
    progress = request.progress
    return Reported(
        Progress(progress.done, progress.total, progress.phase) if request.HasField("progress") else None,
        request.result_json if request.HasField("result_json") else None,
        request.warning if request.HasField("warning") else None,
        list(request.not_finite.names) if request.HasField("not_finite") else None,
    )


def damaged_job_to_proto(job: Job) -> jobs_pb2.Job:
    """Of a job whose other facts cannot be sent."""
    reason = "what is recorded of the job is damaged; see the scheduling service's log"
    known = jobs_pb2.JobSpec(name=job.spec.name, kind=job.spec.kind, owner=job.spec.owner)
    return jobs_pb2.Job(id=job.id, spec=known, state=job.state.value, reason=reason, attempt=job.attempt)


def job_to_proto(job: Job, run_directory: Path, reason: str) -> jobs_pb2.Job:
    """`reason` is what WaitingReasons says of it."""
    spec = job.spec
    return jobs_pb2.Job(
        id=job.id,
        spec=jobs_pb2.JobSpec(
            name=spec.name,
            kind=spec.kind,
            owner=spec.owner,
            instance_group=job.group_id,
            ranks=spec.ranks,
            gpus_per_rank=spec.gpus_per_rank,
            command=list(spec.command),
            environment=dict(spec.environment),
            working_directory=spec.working_directory,
            max_restarts=spec.max_restarts,
            grace_seconds=spec.grace_seconds,
            warm=spec.warm,
            model=spec.model,
            dataset=spec.dataset,
            framework=spec.framework,
            max_seconds=spec.max_seconds,
            application_name=spec.application_name,
            min_ranks=spec.min_ranks,
            max_silent_seconds=spec.max_silent_seconds,
            max_disk_bytes=spec.max_disk_bytes,
            gpu_percentage=spec.gpu_percentage,
            priority=spec.priority,
            after=spec.after,
            memory_bytes_per_rank=spec.memory_bytes_per_rank,
            cores_per_rank=spec.cores_per_rank,
            study=spec.study,
        ),
        state=job.state.value,
        reason=reason,
        attempt=job.attempt,
        progress=jobs_pb2.Progress(done=job.progress.done, total=job.progress.total, phase=job.progress.phase),
        result_json=job.result_json,
        warning=job.warning,
        created_at=_seconds(job.created_at),
        started_at=_seconds(job.started_at),
        ended_at=_seconds(job.ended_at),
        ranks=[
            jobs_pb2.RankOutcome(rank=row.rank, pid=row.pid, exit_code=row.exit_code, is_cause=row.is_cause)
            for row in job.ranks
        ],
        log_tail=job.log_tail,
        run_directory=str(run_directory),
        driver_id=driver_id(job),
        instance_group_id=job.group_id,
        current_ranks=job.current_ranks,
        application_id=application_id(job),
        not_finite_series=job.not_finite_series,
    )


def group_to_proto(group: InstanceGroup) -> jobs_pb2.InstanceGroup:
    return jobs_pb2.InstanceGroup(
        id=group.id,
        name=group.name,
        slots=group.slots,
        gpus=group.gpus,
        master_url=group.master_url,
        history_server_url=group.history_server_url,
        state=group_state(group),
        engine=group.engine,
        execution_user=group.execution_user,
    )


def group_state(group: InstanceGroup) -> str:
    """The word that clients read."""
    return "STARTED" if group.is_started else "STOPPED"


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
