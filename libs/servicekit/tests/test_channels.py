"""Peers that live and do not answer, over real sockets: every call has an end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.scheduling.v1 import jobs_pb2_grpc
from servicekit import channels as channels_module
from servicekit.channels import Channels, call_from_loop, call_peer
from servicekit.errors import Code, ServiceError
from servicekit.job_client import JobsClient
from servicekit.jobs import JobRequest
from servicekit.server import Application
from testkit.services import Client, collect, running, settings_for

LIMIT_SECONDS = 120


class Silent(datasets_pb2_grpc.DatasetServiceServicer):
    """Takes every call and answers none; `given_up` when a caller went away."""

    def __init__(self) -> None:
        self.given_up = asyncio.Event()

    async def CreateDataset(self, request: Any, context: Any) -> None:
        await self._wait()

    async def ListDatasets(self, request: Any, context: Any) -> AsyncIterator[datasets_pb2.DatasetDetail]:
        yield datasets_pb2.DatasetDetail(name="first")
        await self._wait()

    async def _wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()


class SilentJobs(jobs_pb2_grpc.JobServiceServicer):
    """As a scheduling service that was stopped by a signal."""

    async def never(self, request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    SubmitJob = GetJobs = StopJob = DeleteJob = GetInstanceGroup = AwaitEnds = never


async def create(stub: Any) -> None:
    await stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d"))


async def listed(stub: Any) -> list[Any]:
    return await collect(stub.ListDatasets(datasets_pb2.ListDatasetsRequest()))


@pytest.mark.parametrize("call", [create, listed])
async def test_a_peer_that_does_not_answer_is_given_up(tmp_path: Path, call: Callable[[Any], Awaitable[Any]]) -> None:
    silent = Silent()
    servicers = [(datasets_pb2_grpc.add_DatasetServiceServicer_to_server, silent, "dlmesh.datasets.v1.DatasetService")]
    async with asyncio.timeout(LIMIT_SECONDS):
        async with running(Application("datasets", servicers), settings_for("datasets", tmp_path)) as client:
            stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
            with pytest.raises(ServiceError) as caught:
                await call_peer(lambda: call(stub), timeout_seconds=0.2)
            # Nobody waits for it: the peer need not go on.
            await silent.given_up.wait()
    assert (caught.value.code, caught.value.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert caught.value.message == "another service of the platform has not answered within 0.2 s"


async def test_every_call_of_a_loop_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_module, "LOOP_TIMEOUT_SECONDS", 0.1)
    servicers = [(jobs_pb2_grpc.add_JobServiceServicer_to_server, SilentJobs(), "dlmesh.scheduling.v1.JobService")]
    async with running(Application("scheduling", servicers), settings_for("scheduling", tmp_path)) as client:
        channels = Channels(settings_for("tuning", tmp_path, peers={"scheduling": f"127.0.0.1:{client.port}"}))
        jobs = JobsClient(channels, "tuning")
        request = JobRequest("j", "n", "ann", "", ["true"], "/", kind="x", max_restarts=0, grace_seconds=1.0)
        for call in (jobs.submit(request), jobs.get(["j"]), jobs.stop("j")):
            async with asyncio.timeout(LIMIT_SECONDS):
                with pytest.raises(ServiceError) as caught:
                    await call
            assert caught.value.code is Code.DEADLINE_EXCEEDED
        await channels.close()


@pytest.mark.parametrize("takes_connections", [True, False])
async def test_a_loop_has_little_patience_with_a_peer_that_is_away(
    monkeypatch: pytest.MonkeyPatch, takes_connections: bool
) -> None:
    monkeypatch.setattr(channels_module, "LOOP_PATIENCE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = Client("datasets", listening.getsockname()[1] if takes_connections else 1)
        stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
        async with asyncio.timeout(LIMIT_SECONDS):
            with pytest.raises(ServiceError) as caught:
                await call_from_loop(lambda: create(stub))
            await client.close()
    assert caught.value.code is Code.UNAVAILABLE
