"""The client of the scheduling service against a played one on a real server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit import channels as channels_module
from servicekit import job_client
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError, forbidden, invalid, not_found
from servicekit.identity import current_identity
from servicekit.job_client import JobsClient
from servicekit.jobs import InstanceGroup, JobFacts, JobRequest, RankOutcome
from servicekit.server import Application
from testkit.services import ALICE, acting_as, running, settings_for

REQUEST = JobRequest(
    job_id="j",
    name="digits/first",
    owner="alice",
    instance_group="1d",
    command=["python", "-m", "x"],
    working_directory="/work",
    kind="training",
    max_restarts=2,
    grace_seconds=8.5,
)


class PlayedJobs(jobs_pb2_grpc.JobServiceServicer):
    """Keeps what was submitted; all calls are for services, as in the real one."""

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
        current_identity().require_service()
        if request.job_id not in self.jobs:
            raise not_found("job", request.job_id)
        return jobs_pb2.StopJobResponse(job=self.jobs[request.job_id])

    async def DeleteJob(self, request: jobs_pb2.DeleteJobRequest, context: Any) -> jobs_pb2.DeleteJobResponse:
        current_identity().require_service()
        self.jobs.pop(request.job_id, None)
        return jobs_pb2.DeleteJobResponse()

    async def GetInstanceGroup(
        self, request: jobs_pb2.GetInstanceGroupRequest, context: Any
    ) -> jobs_pb2.GetInstanceGroupResponse:
        current_identity().require_service()
        if request.name_or_id == "secret":
            raise forbidden("not this one")
        if request.name_or_id != "local":
            raise invalid("name_or_id", request.name_or_id, ("local",))
        group = jobs_pb2.InstanceGroup(
            id="1d",
            name="local",
            slots=4,
            gpus=1,
            master_url="local://here",
            history_server_url="/history",
            execution_user="worker",
        )
        return jobs_pb2.GetInstanceGroupResponse(instance_group=group)


@pytest.fixture
def played() -> PlayedJobs:
    return PlayedJobs()


@pytest.fixture
async def channels(tmp_path: Path, played: PlayedJobs) -> AsyncIterator[Channels]:
    servicers = [(jobs_pb2_grpc.add_JobServiceServicer_to_server, played, "dlmesh.scheduling.v1.JobService")]
    async with running(Application("scheduling", servicers), settings_for("scheduling", tmp_path)) as client:
        channels = Channels(settings_for("training", tmp_path, peers={"scheduling": f"127.0.0.1:{client.port}"}))
        yield channels
        await channels.close()


@pytest.fixture
def jobs(channels: Channels) -> JobsClient:
    return JobsClient(channels, "training")


async def test_a_plain_job_is_one_cold_rank(jobs: JobsClient, played: PlayedJobs) -> None:
    for _ in range(2):
        await jobs.submit(REQUEST)
    assert played.jobs["j"].spec == jobs_pb2.JobSpec(
        name="digits/first",
        kind="training",
        owner="alice",
        instance_group="1d",
        ranks=1,
        command=["python", "-m", "x"],
        working_directory="/work",
        max_restarts=2,
        grace_seconds=8.5,
        application_name="digits/first",
    )


async def test_everything_that_is_asked_for_arrives(jobs: JobsClient, played: PlayedJobs) -> None:
    asked: dict[str, Any] = {
        "ranks": 3,
        "gpus_per_rank": 1,
        "environment": {"STAGE": "3"},
        "warm": True,
        "model": "digits",
        "dataset": "data",
        "framework": "PyTorch",
        "min_ranks": 1,
        "max_silent_seconds": 300.5,
        "max_disk_bytes": 10 << 30,
        "gpu_percentage": 50,
        "priority": 5,
        "max_seconds": 60.5,
        "study": "s1",
    }
    await jobs.submit(replace(REQUEST, **asked))
    spec = played.jobs["j"].spec
    assert {name: getattr(spec, name) for name in asked} == asked


async def test_facts_are_those_of_the_job(jobs: JobsClient, played: PlayedJobs) -> None:
    await jobs.submit(REQUEST)
    assert await jobs.get(["j", "unknown"]) == {"j": JobFacts("j", "SUBMITTED", "waits")}
    played.jobs["j"] = jobs_pb2.Job(
        id="j",
        state="ERROR",
        reason="exit 65",
        progress=jobs_pb2.Progress(done=3, total=7),
        result_json='{"refused": "no images"}',
        warning="loss is no number",
        log_tail="Traceback",
        driver_id="driver-1",
        run_directory="/run/1",
        started_at=10.5,
        current_ranks=2,
        ranks=[jobs_pb2.RankOutcome(rank=0, pid=7), jobs_pb2.RankOutcome(rank=1, pid=8, exit_code=-9, is_cause=True)],
        not_finite_series=["loss", "grad_norm"],
    )
    assert (await jobs.get(["j"]))["j"] == JobFacts(
        "j",
        "ERROR",
        "exit 65",
        done=3,
        total=7,
        result={"refused": "no images"},
        refusal="no images",
        warning="loss is no number",
        log_tail="Traceback",
        driver_id="driver-1",
        run_directory="/run/1",
        started_at=datetime(1970, 1, 1, 0, 0, 10, 500000, tzinfo=UTC),
        ranks=2,
        rank_outcomes=(RankOutcome(0, 7), RankOutcome(1, 8, -9, is_cause=True)),
        not_finite_series=("loss", "grad_norm"),
    )


@pytest.mark.parametrize(
    ("state", "codes", "cause", "was_killed"),
    [
        ("ERROR", [-9], 0, True),
        ("ERROR", [137], 0, True),
        ("ERROR", [-15, -9], 1, True),
        ("ERROR", [1, -9], 0, False),
        ("ERROR", [-11], 0, False),
        ("ERROR", [143], 0, False),
        ("ERROR", [None], 0, False),
        ("ERROR", [-9], None, False),
        ("KILLED", [-9], 0, False),
        ("RUNNING", [-9], 0, False),
    ],
)
def test_a_job_was_killed_when_its_failure_is_that_of_a_killed_rank(
    state: str, codes: list[int | None], cause: int | None, was_killed: bool
) -> None:
    ranks = [RankOutcome(rank, 7, code, is_cause=rank == cause) for rank, code in enumerate(codes)]
    assert JobFacts("j", state, rank_outcomes=ranks).was_killed is was_killed


@pytest.mark.parametrize("report", ["", "null", "[1]", '"text"', '{"pairs":', "[" * 100_000])
async def test_a_senseless_result_hides_no_other_job(jobs: JobsClient, played: PlayedJobs, report: str) -> None:
    played.jobs["bad"] = jobs_pb2.Job(id="bad", state="FINISHED", result_json=report)
    played.jobs["good"] = jobs_pb2.Job(id="good", state="FINISHED", result_json='{"pairs": []}')
    assert await jobs.get(["bad", "good"]) == {
        "bad": JobFacts("bad", "FINISHED"),
        "good": JobFacts("good", "FINISHED", result={"pairs": []}),
    }


async def test_texts_in_a_result_are_those_that_a_database_takes(jobs: JobsClient, played: PlayedJobs) -> None:
    report = r'{"refused": "\ud800 a\u0000b \ud83d\ude00", "pairs": [{"na\u0000me": "\udc00"}]}'
    played.jobs["j"] = jobs_pb2.Job(id="j", state="FINISHED", result_json=report)
    facts = (await jobs.get(["j"]))["j"]
    assert facts.refusal == "\ufffd a\ufffdb \U0001f600"
    assert facts.result == {"refused": facts.refusal, "pairs": [{"na\ufffdme": "\ufffd"}]}


async def test_jobs_that_are_too_large_for_one_answer_come_in_several(
    channels: Channels, played: PlayedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels_module, "CHANNEL_OPTIONS", [("grpc.max_receive_message_length", 2048)])
    jobs = JobsClient(channels, "training")
    names = [f"j{number}" for number in range(5)]
    for name in names:
        played.jobs[name] = jobs_pb2.Job(id=name, state="FINISHED", log_tail="x" * 1500)
    assert list(await jobs.get(names)) == names
    played.jobs["j3"].log_tail *= 2
    with pytest.raises(ServiceError) as caught:
        await jobs.get(names)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_a_user_stops_no_job_but_the_service_deletes_for_him(jobs: JobsClient, played: PlayedJobs) -> None:
    await jobs.submit(REQUEST)
    await jobs.stop("j")
    with acting_as(ALICE):
        with pytest.raises(ServiceError) as refused:
            await jobs.stop("j")
        await jobs.delete("j")
        await jobs.delete("j")
        assert current_identity() == ALICE
    assert refused.value.code is Code.PERMISSION_DENIED
    assert played.jobs == {}
    with pytest.raises(ServiceError) as unknown:
        await jobs.stop("j")
    assert unknown.value.code is Code.NOT_FOUND


async def test_an_unknown_group_names_the_callers_field_and_the_known(jobs: JobsClient) -> None:
    with acting_as(ALICE):
        assert await jobs.instance_group("sigid", "local") == InstanceGroup(
            id="1d",
            name="local",
            master_url="local://here",
            history_server_url="/history",
            slots=4,
            gpus=1,
            execution_user="worker",
        )
        with pytest.raises(ServiceError, match=r"^sigid: 'moon' is .*local") as caught:
            await jobs.instance_group("sigid", "moon")
        with pytest.raises(ServiceError, match=r"^sig of the model: 'moon' is .*local") as in_words:
            await jobs.instance_group("sigid", "moon", named_by="sig of the model")
        with pytest.raises(ServiceError, match=r"^not this one$"):
            await jobs.instance_group("sigid", "secret")
    for error in (caught.value, in_words.value):
        assert error.code is Code.INVALID_ARGUMENT
        assert error.metadata == {"field": "sigid", "value": "'moon'", "allowed": "one of local"}


async def test_loops_wait_a_moment_and_requests_the_usual_while(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[float, float]] = []

    async def call_peer(
        call: Callable[[], Any],
        *,
        patience_seconds: float = channels_module.PATIENCE_SECONDS,
        timeout_seconds: float = channels_module.TIMEOUT_SECONDS,
    ) -> Any:
        waited.append((patience_seconds, timeout_seconds))
        return await call()

    monkeypatch.setattr(job_client, "call_peer", call_peer)
    monkeypatch.setattr(channels_module, "call_peer", call_peer)
    jobs = JobsClient(channels, "training")
    await jobs.submit(REQUEST)
    await jobs.get(["j"])
    await jobs.stop("j")
    await jobs.delete("j")
    await jobs.instance_group("sigid", "local")
    await JobsClient(channels, "training", delete_patience_seconds=1.0).delete("j")
    in_loop, in_request = (1.0, 20.0), (20.0, 60.0)
    assert waited == [in_loop, in_loop, in_loop, in_request, in_request, (1.0, 60.0)]


def test_domains_may_import_the_dataclasses() -> None:
    program = "import sys, servicekit.jobs\nprint('grpc' in sys.modules, 'google.protobuf' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["False", "False"]
