"""The scheduling service behind `ports.Jobs`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError

from inference_service.domain.predictions import InstanceGroup, JobFacts
from inference_service.usecases.ports import JobRequest

# The reconcile loop comes back by itself; a request of a user waits the usual while.
LOOP_PATIENCE_SECONDS = 1.0
MAX_RESTARTS = 2
GRACE_SECONDS = 3.0


class JobsClient:
    """Jobs of the scheduling service."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("scheduling", jobs_pb2_grpc.JobServiceStub)

    async def submit(self, request: JobRequest) -> None:
        spec = jobs_pb2.JobSpec(
            name=request.name,
            kind="prediction",
            owner=request.owner,
            instance_group=request.instance_group,
            ranks=1,
            command=request.command,
            working_directory=request.working_directory,
            max_restarts=MAX_RESTARTS,
            grace_seconds=GRACE_SECONDS,
            warm=True,
            model=request.model,
            application_name=request.name,
        )
        message = jobs_pb2.SubmitJobRequest(job_id=request.job_id, spec=spec)
        await call_peer(lambda: self._stub.SubmitJob(message), patience_seconds=LOOP_PATIENCE_SECONDS)

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        message = jobs_pb2.GetJobsRequest(job_ids=job_ids)
        response = await call_peer(lambda: self._stub.GetJobs(message), patience_seconds=LOOP_PATIENCE_SECONDS)
        return {job.id: _facts(job) for job in response.jobs}

    async def stop(self, job_id: str) -> None:
        message = jobs_pb2.StopJobRequest(job_id=job_id)
        await call_peer(lambda: self._stub.StopJob(message), patience_seconds=LOOP_PATIENCE_SECONDS)

    async def delete(self, job_id: str) -> None:
        await call_peer(lambda: self._stub.DeleteJob(jobs_pb2.DeleteJobRequest(job_id=job_id)))

    async def instance_group(self, name_or_id: str, field: str) -> InstanceGroup:
        message = jobs_pb2.GetInstanceGroupRequest(name_or_id=name_or_id)
        try:
            group = (await call_peer(lambda: self._stub.GetInstanceGroup(message))).instance_group
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            # The refusal of the scheduling service lists the known ones; which field named the group only we know.
            metadata = {**error.metadata, "field": field}
            raise ServiceError(error.code, error.reason, f"{field}: {error.message}", metadata) from error
        return InstanceGroup(group.id, group.name, group.master_url, group.history_server_url)


def _facts(job: jobs_pb2.Job) -> JobFacts:
    return JobFacts(
        job_id=job.id,
        state=job.state,
        reason=job.reason,
        done=job.progress.done,
        total=job.progress.total,
        result=json.loads(job.result_json) if job.result_json else None,
        log_tail=job.log_tail,
        driver_id=job.driver_id,
    )
