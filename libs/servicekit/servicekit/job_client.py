"""The scheduling service, as the services that own jobs call it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc

from servicekit.channels import LOOP_PATIENCE_SECONDS, PATIENCE_SECONDS, Channels, call_from_loop, call_peer
from servicekit.errors import Code, ServiceError, renamed
from servicekit.identity import Identity, acting_as
from servicekit.jobs import InstanceGroup, JobFacts, JobRequest, RankOutcome
from servicekit.texts import storable_json

# What the answer of a long call may take beyond the time that it waits by itself.
ANSWER_SECONDS = 15.0


class JobsClient:
    """Jobs of the scheduling service. Every call may be repeated; 503 when the service is away, 504 when it lives but
    does not answer.

    `submit`, `get`, `await_ends` and `stop` are for loops. `delete` and `instance_group` also serve the request of a
    user and are called in the name of the service: jobs belong to services, and which groups exist is no secret.
    """

    def __init__(
        self, channels: Channels, service_name: str, *, delete_patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._stub = channels.stub("scheduling", jobs_pb2_grpc.JobServiceStub)
        self._identity = Identity.service(service_name)
        self._delete_patience_seconds = delete_patience_seconds

    async def submit(self, request: JobRequest) -> None:
        """400 when the job can never run."""
        spec = jobs_pb2.JobSpec(
            name=request.name,
            kind=request.kind,
            owner=request.owner,
            instance_group=request.instance_group,
            ranks=request.ranks,
            gpus_per_rank=request.gpus_per_rank,
            command=request.command,
            environment=request.environment,
            working_directory=request.working_directory,
            max_restarts=request.max_restarts,
            grace_seconds=request.grace_seconds,
            warm=request.warm,
            model=request.model,
            dataset=request.dataset,
            framework=request.framework,
            application_name=request.name,
            min_ranks=request.min_ranks,
            max_silent_seconds=request.max_silent_seconds,
            max_disk_bytes=request.max_disk_bytes,
            gpu_percentage=request.gpu_percentage,
            priority=request.priority,
            max_seconds=request.max_seconds,
            study=request.study,
        )
        message = jobs_pb2.SubmitJobRequest(job_id=request.job_id, spec=spec)
        await call_from_loop(lambda: self._stub.SubmitJob(message))

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        """The jobs that are known; unknown ids are left out."""
        message = jobs_pb2.GetJobsRequest(job_ids=job_ids)
        try:
            response = await call_from_loop(lambda: self._stub.GetJobs(message))
        except ServiceError as error:
            if error.code is not Code.RESOURCE_EXHAUSTED or len(job_ids) < 2:
                raise
            # Programs report as much as they like: what is too large for one answer must not hold up the others.
            half = len(job_ids) // 2
            return {**await self.get(job_ids[:half]), **await self.get(job_ids[half:])}
        return {job.id: _facts(job) for job in response.jobs}

    async def await_ends(self, job_ids: Collection[str], seconds: float) -> set[str]:
        """Those of the jobs that have ended or are unknown, as soon as there are any; none after `seconds`, at most 30.

        It may be cancelled at any time.
        """
        message = jobs_pb2.AwaitEndsRequest(job_ids=job_ids, seconds=seconds)
        with acting_as(self._identity):
            response = await call_peer(
                lambda: self._stub.AwaitEnds(message),
                patience_seconds=LOOP_PATIENCE_SECONDS,
                timeout_seconds=seconds + ANSWER_SECONDS,
            )
        return set(response.job_ids)

    async def stop(self, job_id: str) -> None:
        """404 when the job was never submitted."""
        message = jobs_pb2.StopJobRequest(job_id=job_id)
        await call_from_loop(lambda: self._stub.StopJob(message))

    async def delete(self, job_id: str) -> None:
        """Forget an ended job; unknown is fine."""
        message = jobs_pb2.DeleteJobRequest(job_id=job_id)
        with acting_as(self._identity):
            await call_peer(lambda: self._stub.DeleteJob(message), patience_seconds=self._delete_patience_seconds)

    async def instance_group(self, field: str, name_or_id: str, *, named_by: str = "") -> InstanceGroup:
        """400 naming `field` and listing the known when unknown; `named_by` says in words what the message begins with,
        `field` when empty."""
        message = jobs_pb2.GetInstanceGroupRequest(name_or_id=name_or_id)
        try:
            with acting_as(self._identity):
                group = (await call_peer(lambda: self._stub.GetInstanceGroup(message))).instance_group
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            # The refusal lists the known groups; which field named this one only the caller knows.
            raise renamed(error, field, shown_as=named_by) from error
        return InstanceGroup(
            id=group.id,
            name=group.name,
            master_url=group.master_url,
            history_server_url=group.history_server_url,
            slots=group.slots,
            gpus=group.gpus,
            execution_user=group.execution_user,
        )


def _facts(job: jobs_pb2.Job) -> JobFacts:
    result = _object(job.result_json)
    return JobFacts(
        job_id=job.id,
        state=job.state,
        reason=job.reason,
        done=job.progress.done,
        total=job.progress.total,
        phase=job.progress.phase,
        result=result,
        refusal=str((result or {}).get("refused", "")),
        warning=job.warning,
        log_tail=job.log_tail,
        driver_id=job.driver_id,
        run_directory=job.run_directory,
        started_at=_moment(job.started_at),
        ended_at=_moment(job.ended_at),
        ranks=job.current_ranks,
        rank_outcomes=tuple(_outcome(rank) for rank in job.ranks),
        not_finite_series=tuple(job.not_finite_series),
    )


def _outcome(rank: jobs_pb2.RankOutcome) -> RankOutcome:
    exit_code = rank.exit_code if rank.HasField("exit_code") else None
    return RankOutcome(rank.rank, rank.pid, exit_code, rank.is_cause)


def _object(text: str) -> Mapping[str, Any] | None:
    """What a program reported; a report that is no JSON object must not keep the other jobs from being followed."""
    try:
        result = storable_json(json.loads(text or "null"))
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
