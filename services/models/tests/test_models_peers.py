"""The clients of the models service against played peers on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from dlmesh.training.v1 import training_pb2, training_pb2_grpc, trials_pb2, trials_pb2_grpc
from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from models_service.clients.activity import ActivityClient
from models_service.clients.datasets import DatasetsClient
from models_service.clients.scheduling import InstanceGroupsClient
from models_service.usecases.ports import InstanceGroup
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.identity import Identity, acting_as, current_identity
from servicekit.server import Application
from testkit.services import ALICE, BOB, running, settings_for


class PlayedDatasets(datasets_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request: datasets_pb2.GetDatasetRequest, context: Any) -> datasets_pb2.DatasetDetail:
        if request.name != "digits":
            raise not_found("dataset", request.name)
        current_identity().require_access("dataset", "digits", "alice")
        return datasets_pb2.DatasetDetail(name="digits")


class PlayedJobs(jobs_pb2_grpc.JobServiceServicer):
    async def GetInstanceGroup(
        self, request: jobs_pb2.GetInstanceGroupRequest, context: Any
    ) -> jobs_pb2.GetInstanceGroupResponse:
        current_identity().require_service()
        if request.name_or_id != "local":
            raise invalid("instanceGroup", request.name_or_id, ("local",))
        return jobs_pb2.GetInstanceGroupResponse(instance_group=jobs_pb2.InstanceGroup(id="1d", name="local"))


class PlayedRuns(
    training_pb2_grpc.TrainingServiceServicer,
    training_pb2_grpc.ValidationServiceServicer,
    inference_pb2_grpc.InferenceServiceServicer,
    trials_pb2_grpc.TrainingTrialServiceServicer,
    tuning_pb2_grpc.ModelTuningServiceServicer,
):
    def __init__(self) -> None:
        self.statuses = {
            "tuning": "STOPPED",
            "training": "FINISHED",
            "validation": "FAILED",
            "prediction": "STOPPED",
        }
        self.trials: list[trials_pb2.ActiveTrial] = []
        self.has_tunings = True

    async def ListTrainings(
        self, request: training_pb2.ListTrainingsRequest, context: Any
    ) -> AsyncIterator[training_pb2.TrainingDetail]:
        current_identity().require_service()
        if request.model_name == "never":
            raise not_found("model", request.model_name)
        parameters = training_pb2.TrainingParameters(training_name="t", status=self.statuses["training"])
        yield training_pb2.TrainingDetail(parameters=parameters)

    async def ListModelTunings(
        self, request: tuning_pb2.ListModelTuningsRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.TuningDetail]:
        current_identity().require_service()
        if not self.has_tunings:
            raise ServiceError(Code.UNIMPLEMENTED, "UNIMPLEMENTED", "of another version")
        if request.model_name == "never":
            raise not_found("model", request.model_name)
        # Only their states are asked for.
        assert request.HasField("length")
        assert request.length == 0
        yield tuning_pb2.TuningDetail(input=tuning_pb2.TuningInput(name="t"), state=self.statuses["tuning"])

    async def ListActiveTrials(
        self, request: trials_pb2.ListActiveTrialsRequest, context: Any
    ) -> trials_pb2.ListActiveTrialsResponse:
        current_identity().require_service()
        return trials_pb2.ListActiveTrialsResponse(trials=self.trials if request.model_name == "digits" else [])

    async def ListValidations(
        self, request: training_pb2.ListValidationsRequest, context: Any
    ) -> AsyncIterator[training_pb2.ValidationDetail]:
        parameters = training_pb2.ValidationParameters(name="v")
        yield training_pb2.ValidationDetail(parameters=parameters, status=self.statuses["validation"])

    async def ListPredictions(
        self, request: inference_pb2.ListPredictionsRequest, context: Any
    ) -> AsyncIterator[inference_pb2.PredictionDetail]:
        assert request.flag == "false"
        yield inference_pb2.PredictionDetail(prediction_name="p", status=self.statuses["prediction"])


@pytest.fixture
def runs() -> PlayedRuns:
    return PlayedRuns()


@pytest.fixture
async def channels(tmp_path: Path, runs: PlayedRuns) -> AsyncIterator[Channels]:
    application = Application(
        name="peers",
        servicers=[
            (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, PlayedDatasets(), "datasets"),
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, PlayedJobs(), "jobs"),
            (training_pb2_grpc.add_TrainingServiceServicer_to_server, runs, "trainings"),
            (training_pb2_grpc.add_ValidationServiceServicer_to_server, runs, "validations"),
            (inference_pb2_grpc.add_InferenceServiceServicer_to_server, runs, "inference"),
            (trials_pb2_grpc.add_TrainingTrialServiceServicer_to_server, runs, "trials"),
            (tuning_pb2_grpc.add_ModelTuningServiceServicer_to_server, runs, "tunings"),
        ],
    )
    async with running(application, settings_for("models", tmp_path)) as client:
        peers = dict.fromkeys(("datasets", "scheduling", "training", "tuning", "inference"), f"127.0.0.1:{client.port}")
        channels = Channels(settings_for("models", tmp_path, peers=peers))
        yield channels
        await channels.close()


async def test_datasets_are_asked_with_the_callers_rights(channels: Channels) -> None:
    datasets = DatasetsClient(channels)
    with acting_as(ALICE):
        await datasets.require("digits", "dataset")
        with pytest.raises(ServiceError) as caught:
            await datasets.require("none", "dataset")
        assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, "dataset")
    with acting_as(BOB), pytest.raises(ServiceError) as caught:
        await datasets.require("digits", "dataset")
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_instance_groups_are_found_and_the_known_listed(channels: Channels) -> None:
    groups = InstanceGroupsClient(channels)
    with acting_as(ALICE):
        assert await groups.find("local", "sig") == InstanceGroup(id="1d", name="local")
        with pytest.raises(ServiceError, match=r"^sig: 'moon' is .*local") as caught:
            await groups.find("moon", "sig")
    assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, "sig")


@pytest.mark.parametrize("kind", ["tuning", "training", "validation", "prediction"])
@pytest.mark.parametrize("status", ["RUNNING", "SUBMITTED"])
async def test_what_runs_is_found(channels: Channels, runs: PlayedRuns, kind: str, status: str) -> None:
    activity = ActivityClient(channels)
    with acting_as(Identity.service("models")):
        assert await activity.of_model("digits") is None
        runs.statuses[kind] = status
        assert await activity.of_model("digits") == f"{kind} {kind[0]!r}"


async def test_trials_of_tunings_are_found(channels: Channels, runs: PlayedRuns) -> None:
    runs.trials.append(trials_pb2.ActiveTrial(trial_id="1d", study="s"))
    with acting_as(Identity.service("models")):
        assert await ActivityClient(channels).of_model("digits") == "a trial of tuning 's'"


async def test_a_peer_that_cannot_say_what_runs_is_no_licence_to_delete(channels: Channels, runs: PlayedRuns) -> None:
    runs.has_tunings = False
    with acting_as(Identity.service("models")), pytest.raises(ServiceError) as refusal:
        await ActivityClient(channels).of_model("digits")
    assert refusal.value.code is Code.UNIMPLEMENTED


async def test_a_model_that_a_peer_never_heard_of_is_not_in_use(channels: Channels) -> None:
    with acting_as(Identity.service("models")):
        assert await ActivityClient(channels).of_model("never") is None


async def test_an_absent_peer_is_no_licence_to_delete(tmp_path: Path) -> None:
    channels = Channels(settings_for("models", tmp_path))
    with acting_as(Identity.service("models")), pytest.raises(ServiceError) as caught:
        await ActivityClient(channels, patience_seconds=0.1).of_model("digits")
    assert caught.value.code is Code.UNAVAILABLE
    await channels.close()
