"""The clients of the peers, against servers that answer as the contract says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.identity import current_identity
from servicekit.server import Application
from testkit.services import ALICE, acting_as, running, settings_for
from training_service.clients.catalog import DatasetsClient, ModelsClient
from training_service.clients.scheduling import JobsClient
from training_service.domain.runs import JobFacts
from training_service.usecases.ports import JobRequest

JOB = JobRequest(
    job_id="j1",
    name="digits/first",
    kind="training",
    owner="alice",
    instance_group="g1",
    ranks=2,
    gpus_per_rank=0,
    command=["python", "-m", "x"],
    working_directory="/w",
    max_restarts=2,
    grace_seconds=20,
    model="digits",
    dataset="data",
    framework="PyTorch",
    environment={"DLMESH_ZERO_STAGE": "3"},
)


class Scheduling(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self) -> None:
        self.submitted: list[Any] = []
        self.deleted: list[str] = []

    async def SubmitJob(self, request: Any, context: Any) -> Any:
        current_identity().require_service()
        self.submitted.append(request)
        return jobs_pb2.SubmitJobResponse()

    async def GetJobs(self, request: Any, context: Any) -> Any:
        current_identity().require_service()
        progress = jobs_pb2.Progress(done=3, total=4)
        job = jobs_pb2.Job(id="j1", state="RUNNING", progress=progress, result_json='{"pairs": []}', driver_id="d1")
        return jobs_pb2.GetJobsResponse(jobs=[job])

    async def DeleteJob(self, request: Any, context: Any) -> Any:
        current_identity().require_service()
        self.deleted.append(request.job_id)
        return jobs_pb2.DeleteJobResponse()

    async def GetInstanceGroup(self, request: Any, context: Any) -> Any:
        if request.name_or_id != "local":
            raise invalid("name_or_id", request.name_or_id, ["local"])
        return jobs_pb2.GetInstanceGroupResponse(
            instance_group=jobs_pb2.InstanceGroup(id="g1", name="local", slots=4, gpus=1)
        )


async def test_jobs(tmp_path: Path) -> None:
    peer = Scheduling()
    settings = settings_for("scheduling", tmp_path)
    servicers = [(jobs_pb2_grpc.add_JobServiceServicer_to_server, peer, "dlmesh.scheduling.v1.JobService")]
    async with running(Application("scheduling", servicers), settings) as client:
        channels = Channels(settings_for("training", tmp_path, peers={"scheduling": f"127.0.0.1:{client.port}"}))
        jobs = JobsClient(channels)
        await jobs.submit(JOB)
        [sent] = peer.submitted
        assert (sent.job_id, sent.spec.ranks, sent.spec.warm, list(sent.spec.command)) == (
            "j1",
            2,
            True,
            ["python", "-m", "x"],
        )
        assert dict(sent.spec.environment) == {"DLMESH_ZERO_STAGE": "3"}
        expected = JobFacts("j1", "RUNNING", done=3, total=4, result={"pairs": []}, driver_id="d1")
        assert await jobs.get(["j1", "j2"]) == {"j1": expected}
        with acting_as(ALICE):
            # A user deletes a training; its job is deleted in the name of this service.
            await jobs.delete("j1")
            group = await jobs.instance_group("local")
            with pytest.raises(ServiceError, match=r"sig of the model.*local") as caught:
                await jobs.instance_group("moon")
        assert peer.deleted == ["j1"]
        assert (group.id, group.slots, group.gpus) == ("g1", 4, 1)
        assert caught.value.code is Code.INVALID_ARGUMENT
        await channels.close()


class Models(models_pb2_grpc.ModelServiceServicer):
    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.model_name != "digits":
            raise not_found("model", request.model_name)
        hyperparameters = models_pb2.Hyperparameters(learning_rate=0.002, solver="Adam", epochs=3, momentum=0)
        return models_pb2.ModelDetail(
            uid="m1", name="digits", path="/m1", hyperparameters=hyperparameters, batch_size=16, instance_group="g1"
        )


class Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    async def GetDataset(self, request: Any, context: Any) -> Any:
        return datasets_pb2.DatasetDetail(
            uid="u1", name=request.name, train_path="/data/my/train", test_path="/data/my/test", status="FINISHED"
        )


async def test_models_and_datasets(tmp_path: Path) -> None:
    settings = settings_for("models", tmp_path)
    servicers = [
        (models_pb2_grpc.add_ModelServiceServicer_to_server, Models(), "dlmesh.models.v1.ModelService"),
        (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, Datasets(), "dlmesh.datasets.v1.DatasetService"),
    ]
    async with running(Application("models", servicers), settings) as client:
        address = f"127.0.0.1:{client.port}"
        channels = Channels(settings_for("training", tmp_path, peers={"models": address, "datasets": address}))
        models = ModelsClient(channels)
        model = await models.get("digits")
        # By the names of the contract, floats as they were meant, zeros kept.
        assert model.hyperparameter == {"learningrate": 0.002, "solvertype": "Adam", "epoch": 3, "momentum": 0.0}
        assert (model.uid, model.path, model.batch_size) == ("m1", "/m1", 16)
        assert (await models.uid_of("digits"), await models.uid_of("gone")) == ("m1", None)
        dataset = await DatasetsClient(channels).get("data")
        assert (dataset.uid, dataset.status) == ("u1", "FINISHED")
        assert dataset.splits == {"train": "/data/my/train", "test": "/data/my/test"}
        await channels.close()
