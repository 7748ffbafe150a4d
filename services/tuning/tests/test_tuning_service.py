"""The tuning service answers, and says that it is not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicekit.channels import as_service_error
from servicekit.database import Database
from servicekit.errors import Code
from testkit.services import ALICE, acting_as, collect, running, settings_for
from tuning_service.storage import MIGRATIONS
from tuning_service.wiring import build

SERVICES = ("HyperSearchService", "ModelTuningService")
METHODS = [
    (service, method.name) for service in SERVICES for method in tuning_pb2.DESCRIPTOR.services_by_name[service].methods
]


async def test_every_operation_says_what_is_coming(tmp_path: Path) -> None:
    settings = settings_for("tuning", tmp_path)
    async with running(build(settings), settings) as client:
        health = client.stub(health_pb2_grpc.HealthStub)
        for service, name in METHODS:
            assert (
                await health.Check(health_pb2.HealthCheckRequest(service=f"dlmesh.tuning.v1.{service}"))
            ).status == 1
            method = tuning_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[name]
            stub = client.stub(getattr(tuning_pb2_grpc, f"{service}Stub"))
            request: Any = message_factory.GetMessageClass(method.input_type)()
            with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError) as caught:
                call = getattr(stub, name)(iter([request]) if method.client_streaming else request)
                await (collect(call) if method.server_streaming else call)
            error = as_service_error(caught.value)
            assert (error.code, error.reason) == (Code.UNIMPLEMENTED, "NOT_BUILT"), name
            assert "not built" in error.message


def test_there_are_operations() -> None:
    assert len(METHODS) >= 16


async def test_the_empty_history_migrates(database_url: str) -> None:
    database = Database(database_url, "tuning")
    await database.migrate(MIGRATIONS)
    await database.migrate(MIGRATIONS)
    await database.close()
