"""How tests start trials in the whole service in this process, with the real engine and real programs."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import scheduling_room
from dlmesh.scheduling.v1 import jobs_pb2, trials_pb2
from servicekit.channels import Channels
from servicekit.job_client import JobsClient
from testkit.services import settings_for

DEADLINE_SECONDS = 120
START = "--exec-start PyTorch --model-main main.py"
UPLOAD = "tuning/s1/upload"


@asynccontextmanager
async def service(home: Path, database_url: str | None = None, slots: int = 2) -> AsyncIterator[Any]:
    """`ends` is a JobsClient, as the services have one."""
    (home / UPLOAD).parent.mkdir(parents=True, exist_ok=True)
    async with scheduling_room.service(home, database_url, slots) as platform:
        channels = Channels(settings_for("tuning", home, peers={"scheduling": f"127.0.0.1:{platform.port}"}))
        platform.ends = JobsClient(channels, "tuning")
        yield platform
        await channels.close()


def trial(**changes: Any) -> trials_pb2.TrialSpec:
    values: dict[str, Any] = {"arguments": START, "upload": UPLOAD, "upload_name": "main.py"}
    return trials_pb2.TrialSpec(**{**values, "owner": "alice", "study": "s1", **changes})


async def check(platform: Any, spec: trials_pb2.TrialSpec) -> trials_pb2.CheckTrialResponse:
    return await platform.trials.CheckTrial(trials_pb2.CheckTrialRequest(spec=spec))


async def start(platform: Any, spec: trials_pb2.TrialSpec, task_id: str = "") -> str:
    task_id = task_id or uuid4().hex
    await platform.trials.StartTrial(trials_pb2.StartTrialRequest(task_id=task_id, spec=spec))
    return task_id


async def end_of(platform: Any, task_id: str) -> jobs_pb2.Job:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await platform.ends.await_ends([task_id], 30.0):
            pass
    (job,) = (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=[task_id]))).jobs
    return job


async def results_of(platform: Any, *task_ids: str) -> dict[str, trials_pb2.TrialResults]:
    answer = await platform.trials.ReadTrialResults(trials_pb2.ReadTrialResultsRequest(task_ids=task_ids))
    return {results.task_id: results for results in answer.results}


async def delete(platform: Any, *task_ids: str) -> None:
    await platform.trials.DeleteTrials(trials_pb2.DeleteTrialsRequest(task_ids=task_ids))


async def until_gone(home: Path, platform: Any, task_id: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (home / "execs" / task_id).exists() or (
            await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=[task_id]))
        ).jobs:
            await asyncio.sleep(0.02)
    assert not (home / "jobs" / task_id).exists()


def left_behind(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "execs").iterdir()) if (home / "execs").exists() else []


def packed(files: dict[str, str]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()
