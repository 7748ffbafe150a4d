"""JobService: for the platform's services and for workers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.errors import invalid, not_found
from servicekit.identity import current_identity
from workerkit.spool import open_plain

from scheduling_service.api import mapping
from scheduling_service.api.log_pieces import log_pieces
from scheduling_service.domain.job import Job
from scheduling_service.usecases.await_ends import AwaitEnds
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.ports import Groups, Jobs, RunDirectories
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob
from scheduling_service.usecases.waiting_reasons import WaitingReasons

log = logging.getLogger(__name__)


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Translates; see jobs.proto for what each call promises."""

    def __init__(
        self,
        submit: SubmitJob,
        stop: StopJob,
        delete: DeleteJob,
        await_ends: AwaitEnds,
        jobs: Jobs,
        groups: Groups,
        directories: RunDirectories,
        reasons: WaitingReasons,
    ) -> None:
        self._submit, self._stop, self._delete, self._await_ends = submit, stop, delete, await_ends
        self._jobs, self._groups, self._directories, self._reasons = jobs, groups, directories, reasons

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, context: Any) -> jobs_pb2.SubmitJobResponse:
        current_identity().require_service()
        spec = mapping.spec_from_proto(request.spec)
        job = await self._submit(request.job_id, spec, request.spec.instance_group)
        return jobs_pb2.SubmitJobResponse(job=await self._proto(job))

    async def GetJobs(self, request: jobs_pb2.GetJobsRequest, context: Any) -> jobs_pb2.GetJobsResponse:
        current_identity().require_service()
        return jobs_pb2.GetJobsResponse(jobs=await self._protos(await self._jobs.find(request.job_ids)))

    async def StopJob(self, request: jobs_pb2.StopJobRequest, context: Any) -> jobs_pb2.StopJobResponse:
        current_identity().require_service()
        return jobs_pb2.StopJobResponse(job=await self._proto(await self._stop(request.job_id)))

    async def DeleteJob(self, request: jobs_pb2.DeleteJobRequest, context: Any) -> jobs_pb2.DeleteJobResponse:
        current_identity().require_service()
        await self._delete(request.job_id)
        return jobs_pb2.DeleteJobResponse()

    async def AwaitEnds(self, request: jobs_pb2.AwaitEndsRequest, context: Any) -> jobs_pb2.AwaitEndsResponse:
        current_identity().require_service()
        return jobs_pb2.AwaitEndsResponse(job_ids=await self._await_ends(request.job_ids, request.seconds))

    async def ReadJobLog(
        self, request: jobs_pb2.ReadJobLogRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.ReadJobLogResponse]:
        current_identity().require_service()
        found = await self._jobs.find([request.job_id])
        if not found:
            raise not_found("job", request.job_id)
        suffix = {"": "out", "stdout": "out", "stderr": "err"}.get(request.stream)
        if suffix is None:
            raise invalid("stream", request.stream, ("stdout", "stderr"))
        path = self._directories.attempt(found[0]) / f"rank-{request.rank}.{suffix}"
        try:
            file = open_plain(path)
        except OSError:
            raise not_found("log", f"{request.stream} of rank {request.rank}") from None
        async for data in log_pieces(file, request.tail_lines):
            yield jobs_pb2.ReadJobLogResponse(data=data)

    async def ReportJob(self, request: jobs_pb2.ReportJobRequest, context: Any) -> jobs_pb2.ReportJobResponse:
        current_identity().require_job(request.job_id)
        await self._jobs.report(request.job_id, request.attempt, mapping.reported_from_proto(request))
        found = await self._jobs.find([request.job_id])
        return jobs_pb2.ReportJobResponse(stop_requested=bool(found) and found[0].stop_requested)

    async def GetInstanceGroup(
        self, request: jobs_pb2.GetInstanceGroupRequest, context: Any
    ) -> jobs_pb2.GetInstanceGroupResponse:
        group = mapping.group_to_proto(await self._groups.get(request.name_or_id))
        return jobs_pb2.GetInstanceGroupResponse(instance_group=group)

    async def _proto(self, job: Job) -> jobs_pb2.Job:
        return (await self._protos([job]))[0]

    async def _protos(self, jobs: Sequence[Job]) -> list[jobs_pb2.Job]:
        reasons = await self._reasons(jobs)
        return [self._shown(job, reasons[job.id]) for job in jobs]

    def _shown(self, job: Job, reason: str) -> jobs_pb2.Job:
        try:
            return mapping.job_to_proto(job, self._directories.attempt(job), reason)
        except (TypeError, ValueError):
            # Services ask for the jobs of all users at once: one must not hide the others.
            log.exception("job %s cannot be shown", job.id)
            return mapping.damaged_job_to_proto(job)
