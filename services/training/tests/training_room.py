"""The running service with played peers, and how tests talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import metrics_pb2_grpc, training_pb2, training_pb2_grpc
from servicekit.identity import acting_as
from servicekit.settings import ServiceSettings
from testkit.services import ALICE, Client, collect
from training_fakes import FakeDatasets, FakeJobs, FakeModels

Start = training_pb2.StartTrainingRequest


@dataclass
class Room:
    """The running service and its played peers."""

    client: Client
    settings: ServiceSettings
    models: FakeModels
    datasets: FakeDatasets
    jobs: FakeJobs

    @property
    def trainings(self) -> Any:
        return self.client.stub(training_pb2_grpc.TrainingServiceStub)

    @property
    def validations(self) -> Any:
        return self.client.stub(training_pb2_grpc.ValidationServiceStub)

    @property
    def metrics(self) -> Any:
        return self.client.stub(metrics_pb2_grpc.MetricServiceStub)

    async def training(self, name: str = "first") -> Any:
        return (await self.trainings.GetTraining(ask(training_pb2.GetTrainingRequest, name))).parameters

    async def validation(self, name: str = "check") -> Any:
        found = await collect(
            self.validations.ListValidations(training_pb2.ListValidationsRequest(model_name="digits"))
        )
        return next(one for one in found if one.parameters.name == name)

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Poll until `condition` (a coroutine function) gives something true."""
        async with asyncio.timeout(10):
            while not (found := await condition()):
                await asyncio.sleep(0.02)
            return found

    async def started(self, name: str = "first", **fields: Any) -> str:
        """Start a training as Alice and wait until its job is submitted; the job's id."""
        with acting_as(ALICE):
            await self.trainings.StartTraining(start(training_name=name, **fields))
        return await self.submitted(name)

    async def submitted(self, name: str = "first") -> str:
        """Wait until the job of a training is submitted; its id."""
        job_id = str((await self.training(name)).application_id)

        async def submitted() -> bool:
            return job_id in self.jobs.requests

        await self.until(submitted)
        return job_id

    async def settled(self, status: str, name: str = "first") -> Any:
        async def reached() -> Any:
            training = await self.training(name)
            return training if training.status == status else None

        return await self.until(reached)

    async def finished(self, name: str = "first") -> Any:
        self.jobs.move(await self.started(name), "FINISHED")
        return await self.settled("FINISHED", name)


def ask(kind: Any, name: str = "first") -> Any:
    return kind(model_name="digits", name=name)


def start(**fields: Any) -> Any:
    return Start(
        **{"model_name": "digits", "training_name": "first", "framework": "PyTorch", "cluster_size": 2, **fields}
    )


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""
