"""JobService: for the platform's services and for workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.errors import invalid, not_found
from servicekit.identity import current_identity
from workerkit.spool import open_plain

from scheduling_service.api import mapping
from scheduling_service.domain.job import Job
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.ports import Groups, Jobs, RunDirectories
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob

CHUNK_BYTES = 256 * 1024
MAX_TAIL_BYTES = 16 * 1024 * 1024


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Translates; see jobs.proto for what each call promises."""

    def __init__(
        self,
        submit: SubmitJob,
        stop: StopJob,
        delete: DeleteJob,
        jobs: Jobs,
        groups: Groups,
        directories: RunDirectories,
    ) -> None:
        self._submit, self._stop, self._delete = submit, stop, delete
        self._jobs, self._groups, self._directories = jobs, groups, directories

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, context: Any) -> jobs_pb2.SubmitJobResponse:
        current_identity().require_service()
        spec = mapping.spec_from_proto(request.spec)
        job = await self._submit(request.job_id, spec, request.spec.instance_group)
        return jobs_pb2.SubmitJobResponse(job=self._proto(job))

    async def GetJobs(self, request: jobs_pb2.GetJobsRequest, context: Any) -> jobs_pb2.GetJobsResponse:
        current_identity().require_service()
        return jobs_pb2.GetJobsResponse(jobs=[self._proto(job) for job in await self._jobs.find(request.job_ids)])

    async def StopJob(self, request: jobs_pb2.StopJobRequest, context: Any) -> jobs_pb2.StopJobResponse:
        current_identity().require_service()
        return jobs_pb2.StopJobResponse(job=self._proto(await self._stop(request.job_id)))

    async def DeleteJob(self, request: jobs_pb2.DeleteJobRequest, context: Any) -> jobs_pb2.DeleteJobResponse:
        current_identity().require_service()
        await self._delete(request.job_id)
        return jobs_pb2.DeleteJobResponse()

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
        with file:
            if request.tail_lines:
                file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
                tail = await asyncio.to_thread(lambda: file.read().splitlines(keepends=True)[-request.tail_lines :])
                yield jobs_pb2.ReadJobLogResponse(data=b"".join(tail))
                return
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
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

    def _proto(self, job: Job) -> jobs_pb2.Job:
        return mapping.job_to_proto(job, self._directories.attempt(job))
