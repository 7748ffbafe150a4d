"""A service in this process, spoken to over real gRPC: identity, errors, success codes, streams, restarts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servicekit.channels import call_peer
from servicekit.errors import Code, ServiceError, in_use, invalid
from servicekit.identity import current_identity, headers_for
from servicekit.server import Application
from testkit.services import ALICE, BOB, SECRET, acting_as, collect, running, settings_for

SERVICE = "dlmesh.datasets.v1.DatasetService"


class Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    async def CreateDataset(self, request: Any, context: Any) -> empty_pb2.Empty:
        if not request.name:
            raise invalid("name", "", "a name\nof one line")
        if request.name == "defect":
            raise KeyError("a defect of ours")
        return empty_pb2.Empty()

    async def ListDatasets(self, request: Any, context: Any) -> AsyncIterator[datasets_pb2.DatasetDetail]:
        for name in (current_identity().user, "second"):
            yield datasets_pb2.DatasetDetail(name=name)

    async def DeleteDataset(self, request: Any, context: Any) -> empty_pb2.Empty:
        raise in_use("dataset", request.name, "model m")


def application(name: str = "datasets") -> Application:
    return Application(name, [(datasets_pb2_grpc.add_DatasetServiceServicer_to_server, Datasets(), SERVICE)])


async def test_calls_carry_who_calls_and_errors_come_back_whole(tmp_path: Path) -> None:
    async with running(application(), settings_for("datasets", tmp_path)) as client:
        stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
        with acting_as(ALICE):
            rows = await collect(stub.ListDatasets(datasets_pb2.ListDatasetsRequest()))
            assert [row.name for row in rows] == ["alice", "second"]
            with pytest.raises(ServiceError) as caught:
                await call_peer(lambda: stub.CreateDataset(datasets_pb2.CreateDatasetRequest()))
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.metadata["field"] == "name"
        with acting_as(BOB), pytest.raises(ServiceError) as used:
            await call_peer(lambda: stub.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name="d")))
        assert (used.value.code, used.value.reason) == (Code.ABORTED, "IN_USE")


async def test_success_codes_of_the_contract_are_sent(tmp_path: Path) -> None:
    async with running(application(), settings_for("datasets", tmp_path)) as client:
        stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
        call = stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d"))
        await call
        headers = dict(await call.initial_metadata())
        assert headers["x-http-code"] == "201"
        assert headers["x-http-empty"] == "1"


async def test_a_defect_is_logged_whole_and_told_as_internal_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(application(), settings_for("datasets", tmp_path)) as client:
        stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="defect"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "defect of ours" not in (caught.value.details() or "")
        assert "a defect of ours" in caplog.text


@pytest.mark.parametrize("method", ["DeleteDataset", "ListDatasets"])
async def test_a_request_that_cannot_be_read_is_refused(tmp_path: Path, method: str) -> None:
    async with running(application(), settings_for("datasets", tmp_path)) as client:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{client.port}") as channel:
            path, cut_short = f"/{SERVICE}/{method}", b"\xff"
            kind = channel.unary_stream if method == "ListDatasets" else channel.unary_unary
            call = kind(path)(cut_short, metadata=headers_for(ALICE, SECRET, "test"))
            with pytest.raises(grpc.aio.AioRpcError, match="not UTF-8") as caught:
                await (call.read() if method == "ListDatasets" else call)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_without_the_secret_are_refused_but_health_and_reflection_answer(tmp_path: Path) -> None:
    async with running(application(), settings_for("datasets", tmp_path)) as client:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{client.port}") as channel:
            stub = datasets_pb2_grpc.DatasetServiceStub(channel)
            for metadata in ((), (("x-dlmesh-user", "Admin"), ("x-dlmesh-admin", "1"))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await collect(stub.ListDatasets(datasets_pb2.ListDatasetsRequest(), metadata=metadata))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
            names = [service.name async for answer in reflection for service in answer.list_services_response.service]
            assert SERVICE in names


async def test_every_mutating_call_leaves_an_audit_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlmesh.audit"):
        async with running(application(), settings_for("datasets", tmp_path)) as client:
            stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
            with acting_as(ALICE):
                await collect(stub.ListDatasets(datasets_pb2.ListDatasetsRequest()))
                path = (("x-envoy-original-path", "/datasets?csrftoken=secret"),)
                await stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d"), metadata=path)
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name="d"))
    rows = [json.loads(record.message) for record in caplog.records if record.name == "dlmesh.audit"]
    assert [(row["who"], row["what"].split("/")[-1], row["result"]) for row in rows] == [
        ("alice", "CreateDataset", "OK"),
        ("alice", "DeleteDataset", "ABORTED"),
    ]
    # Queries hold tokens.
    assert [row["path"] for row in rows] == ["/datasets", ""]


async def test_a_peer_may_restart_in_the_middle(tmp_path: Path) -> None:
    settings = settings_for("datasets", tmp_path)
    async with running(application(), settings) as client:
        stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
        request = datasets_pb2.CreateDatasetRequest(name="d")
        await call_peer(lambda: stub.CreateDataset(request))
    revived = application()

    async def revive() -> None:
        await asyncio.sleep(0.3)
        await revived.start(replace(settings, address=f"127.0.0.1:{client.port}"))

    again = asyncio.create_task(revive())
    fresh = type(client)("datasets", client.port)
    try:
        await call_peer(
            lambda: fresh.stub(datasets_pb2_grpc.DatasetServiceStub).CreateDataset(request), patience_seconds=10
        )
    finally:
        await again
        await fresh.close()
        await revived.stop()


async def test_a_peer_that_stays_away_is_unavailable(tmp_path: Path) -> None:
    from testkit.services import Client

    client = Client("datasets", 1)
    stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
    with pytest.raises(ServiceError) as caught:
        await call_peer(lambda: stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d")), patience_seconds=0.2)
    assert caught.value.code is Code.UNAVAILABLE
    await client.close()
