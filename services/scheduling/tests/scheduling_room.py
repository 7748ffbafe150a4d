"""The scheduling service in this process with the real local engine, and jobs for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc, scheduling_pb2_grpc, trials_pb2_grpc
from scheduling_service.wiring import LocalSettings, build
from testkit.services import running, settings_for

JobStub = jobs_pb2_grpc.JobServiceStub
DEADLINE_SECONDS = 20


@asynccontextmanager
async def service(
    home: Path, database_url: str | None = None, slots: int = 2, grow_after_seconds: float = 0.0, gpus: int = 0
) -> AsyncIterator[Any]:
    settings = settings_for("scheduling", home, database_url=database_url)
    local = LocalSettings(slots=slots, gpus=gpus, warm_pool=False, grow_after_seconds=grow_after_seconds)
    application = build(settings, local=local)
    async with running(application, settings) as client:
        yield SimpleNamespace(
            jobs=client.stub(JobStub),
            scheduler=client.stub(scheduling_pb2_grpc.SchedulerServiceStub),
            trials=client.stub(trials_pb2_grpc.TrialServiceStub),
            execs=client.stub(scheduling_pb2_grpc.ExecServiceStub),
            groups=client.stub(scheduling_pb2_grpc.InstanceGroupServiceStub),
            port=client.port,
        )


def spec(home: Path, program: str, **changes: Any) -> jobs_pb2.JobSpec:
    values: dict[str, Any] = {
        "name": "job",
        "kind": "training",
        "owner": "alice",
        "ranks": 1,
        "command": ["python", "-c", program],
        "working_directory": str(home / "data"),
        "grace_seconds": 1,
    }
    return jobs_pb2.JobSpec(**{**values, **changes})


async def submit(platform: Any, job_id: str, wanted: jobs_pb2.JobSpec) -> jobs_pb2.Job:
    return (await platform.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(job_id=job_id, spec=wanted))).job


async def until(platform: Any, job_id: str, *states: str) -> jobs_pb2.Job:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            (job,) = (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=[job_id]))).jobs
            if job.state in states:
                return job
            await asyncio.sleep(0.02)
