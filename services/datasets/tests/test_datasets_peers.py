"""The clients of the datasets service against played peers on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from datasets_service.clients.models import ModelsClient
from datasets_service.clients.scheduling import JobsClient
from datasets_service.domain.dataset import InstanceGroup, JobFacts
from datasets_service.usecases.ports import JobRequest
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.identity import acting_as, current_identity
from servicekit.server import Application
from testkit.services import ALICE, running, settings_for

REQUEST = JobRequest("j", "import digits", "alice", "1d", ["python", "-m", "x"], "/work", "digits")


class PlayedJobs(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self) -> None:
        self.jobs: dict[str, jobs_pb2.Job] = {}

    async def SubmitJob(self, request: jobs_pb2.SubmitJobRequest, context: Any) -> jobs_pb2.SubmitJobResponse:
        current_identity().require_service()
        job = jobs_pb2.Job(id=request.job_id, spec=request.spec, state="SUBMITTED", reason="waits")
        return jobs_pb2.SubmitJobResponse(job=self.jobs.setdefault(request.job_id, job))

    async def GetJobs(self, request: jobs_pb2.GetJobsRequest, context: Any) -> jobs_pb2.GetJobsResponse:
        current_identity().require_service()
        return jobs_pb2.GetJobsResponse(jobs=[self.jobs[id] for id in request.job_ids if id in self.jobs])

    async def StopJob(self, request: jobs_pb2.StopJobRequest, context: Any) -> jobs_pb2.StopJobResponse:
        if request.job_id not in self.jobs:
            raise not_found("job", request.job_id)
        return jobs_pb2.StopJobResponse(job=self.jobs[request.job_id])

    async def DeleteJob(self, request: jobs_pb2.DeleteJobRequest, context: Any) -> jobs_pb2.DeleteJobResponse:
        self.jobs.pop(request.job_id, None)
        return jobs_pb2.DeleteJobResponse()

    async def GetInstanceGroup(
        self, request: jobs_pb2.GetInstanceGroupRequest, context: Any
    ) -> jobs_pb2.GetInstanceGroupResponse:
        current_identity().require_service()
        if request.name_or_id != "local":
            raise invalid("instance_group", request.name_or_id, ("local",))
        group = jobs_pb2.InstanceGroup(id="1d", name="local", master_url="local://here")
        return jobs_pb2.GetInstanceGroupResponse(instance_group=group)


class PlayedModels(models_pb2_grpc.ModelServiceServicer):
    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> AsyncIterator[models_pb2.ModelDetail]:
        current_identity().require_service()
        for name, dataset in (("net", "digits"), ("other", "letters")):
            if dataset == request.dataset:
                yield models_pb2.ModelDetail(name=name, dataset=dataset)


@pytest.fixture
def played() -> PlayedJobs:
    return PlayedJobs()


@pytest.fixture
async def channels(tmp_path: Path, played: PlayedJobs) -> AsyncIterator[Channels]:
    application = Application(
        name="played",
        servicers=[
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, played, "dlmesh.scheduling.v1.JobService"),
            (models_pb2_grpc.add_ModelServiceServicer_to_server, PlayedModels(), "dlmesh.models.v1.ModelService"),
        ],
    )
    async with running(application, settings_for("played", tmp_path)) as client:
        address = f"127.0.0.1:{client.port}"
        channels = Channels(settings_for("datasets", tmp_path, peers={"scheduling": address, "models": address}))
        yield channels
        await channels.close()


async def test_a_job_is_submitted_once_followed_and_forgotten(channels: Channels, played: PlayedJobs) -> None:
    jobs = JobsClient(channels)
    for _ in range(2):
        await jobs.submit(REQUEST)
    spec = played.jobs["j"].spec
    assert (spec.kind, spec.ranks, spec.owner, spec.instance_group, spec.warm) == ("import", 1, "alice", "1d", False)
    assert list(spec.command) == ["python", "-m", "x"]
    assert await jobs.get(["j", "unknown"]) == {"j": JobFacts("j", "SUBMITTED", "waits")}
    job = played.jobs["j"]
    job.state, job.started_at, job.result_json = "ERROR", 10.5, '{"refused": "no images"}'
    job.progress.done, job.progress.total = 3, 7
    facts = (await jobs.get(["j"]))["j"]
    assert (facts.done, facts.total, facts.refusal) == (3, 7, "no images")
    assert facts.started_at == datetime(1970, 1, 1, 0, 0, 10, 500000, tzinfo=UTC)
    assert facts.ended_at is None
    await jobs.stop("j")
    await jobs.delete("j")
    with pytest.raises(ServiceError) as caught:
        await jobs.stop("j")
    assert caught.value.code is Code.NOT_FOUND


async def test_an_unknown_group_names_our_field_and_the_known(channels: Channels) -> None:
    jobs = JobsClient(channels)
    with acting_as(ALICE):
        assert await jobs.instance_group("sigid", "local") == InstanceGroup("1d", "local", "local://here")
        with pytest.raises(ServiceError, match=r"^sigid: .*local") as caught:
            await jobs.instance_group("sigid", "moon")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "sigid"


async def test_models_of_all_users_are_asked_for(channels: Channels) -> None:
    with acting_as(ALICE):
        assert await ModelsClient(channels).naming("digits") == ["net"]
        assert await ModelsClient(channels).naming("free") == []
