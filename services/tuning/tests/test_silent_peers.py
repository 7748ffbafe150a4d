"""Services that live and do not answer, as one does that was stopped by a signal: real calls to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dlmesh.scheduling.v1 import jobs_pb2_grpc
from dlmesh.scheduling.v1 import trials_pb2_grpc as programs_grpc
from dlmesh.training.v1 import trials_pb2_grpc as trainings_grpc
from servicekit import channels as channels_module
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError
from servicekit.job_client import JobsClient
from servicekit.server import Application
from studies_room import StudiesRoom, request_of, study_of
from testkit.services import running, settings_for
from tuning_service.clients.training_trials import TrainingTrials
from tuning_service.clients.trials import ExecTrials
from tuning_service.domain.plan import Objective, Plan
from tuning_service.domain.space import Space
from tuning_service.domain.study import Kind, Status, Trial

LIMIT_SECONDS = 240
WAITING = "waiting: another service of the platform has not answered within 0.2 s"
PLAN = Plan(Space(()), (), "Random", {}, (Objective("loss", False),))


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


class SilentPrograms(programs_grpc.TrialServiceServicer):
    StartTrial = ReadTrialResults = DeleteTrials = never


class SilentJobs(jobs_pb2_grpc.JobServiceServicer):
    GetJobs = StopJob = AwaitEnds = never


class SilentTrainings(trainings_grpc.TrainingTrialServiceServicer):
    StartTrial = ReadTrialMetrics = DeleteTrials = never


@pytest.fixture
async def channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Channels]:
    monkeypatch.setattr(channels_module, "LOOP_TIMEOUT_SECONDS", 0.2)
    silent = Application(
        "silent",
        [
            (programs_grpc.add_TrialServiceServicer_to_server, SilentPrograms(), "dlmesh.scheduling.v1.TrialService"),
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, SilentJobs(), "dlmesh.scheduling.v1.JobService"),
            (
                trainings_grpc.add_TrainingTrialServiceServicer_to_server,
                SilentTrainings(),
                "dlmesh.training.v1.TrainingTrialService",
            ),
        ],
    )
    async with running(silent, settings_for("silent", tmp_path)) as client:
        address = f"127.0.0.1:{client.port}"
        found = Channels(settings_for("tuning", tmp_path, peers={"scheduling": address, "training": address}))
        yield found
        await found.close()


@pytest.mark.parametrize("make", [ExecTrials, TrainingTrials])
async def test_every_call_of_the_loop_has_an_end(channels: Channels, make: type[ExecTrials | TrainingTrials]) -> None:
    runner, trial = make(channels), Trial("s", 1, "0" * 32, {"rate": 0.5})
    for call in (
        runner.start(study_of(), PLAN, trial, None),
        runner.results(PLAN, [trial], have_ended=True),
        runner.delete([trial.uid]),
    ):
        async with asyncio.timeout(LIMIT_SECONDS):
            with pytest.raises(ServiceError) as caught:
                await call
        assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_a_study_whose_runner_is_silent_says_so_and_the_others_go_on(
    room: StudiesRoom, channels: Channels
) -> None:
    room.runners = {Kind.MODEL_TUNING: TrainingTrials(channels)}
    room.restart()
    stuck = await room.add("stuck", request=request_of(maxJobNum=2), kind=Kind.MODEL_TUNING)
    other = await room.add("other", request=request_of(maxJobNum=2))
    async with asyncio.timeout(LIMIT_SECONDS):
        study = await room.to_the_end(other)
        while not (message := (await room.study(stuck)).status_message):
            await room.step()
    assert (study.status, study.counts.finished) == (Status.FINISHED, 2)
    assert (message, (await room.study(stuck)).status) == (WAITING, Status.RUNNING)


async def test_a_silent_scheduling_service_is_waited_for(room: StudiesRoom, channels: Channels) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    await room.until_running(uid, 1)
    await room.loop.close()
    played, room.jobs = room.jobs, JobsClient(channels, "tuning")  # type: ignore[assignment]
    room.restart()
    async with asyncio.timeout(LIMIT_SECONDS):
        await room.step()
    assert (await room.study(uid)).status_message == WAITING
    await room.loop.close()
    room.jobs = played
    room.restart()
    assert (await room.to_the_end(uid)).counts.finished == 2
