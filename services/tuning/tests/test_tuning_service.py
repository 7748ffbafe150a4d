"""The service starts, migrates, and refuses before it asks anybody."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicekit.channels import as_service_error
from servicekit.database import Database
from servicekit.errors import Code
from studies_room import request_of
from testkit.services import ALICE, acting_as, collect, running, settings_for
from tuning_service.storage import MIGRATIONS
from tuning_service.wiring import build


async def test_nothing_is_left_of_what_was_refused(tmp_path: Path) -> None:
    settings = settings_for("tuning", tmp_path)
    async with running(build(settings), settings) as client:
        health = client.stub(health_pb2_grpc.HealthStub)
        for service in ("HyperSearchService", "ModelTuningService"):
            check = health_pb2.HealthCheckRequest(service=f"dlmesh.tuning.v1.{service}")
            assert (await health.Check(check)).status == 1
        searches = client.stub(tuning_pb2_grpc.HyperSearchServiceStub)
        data = json.dumps(request_of(maxJobNum=0.5))
        body = f'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\n{data}\r\n--x--\r\n'.encode()
        form = HttpBody(content_type="multipart/form-data; boundary=x", data=body)
        with acting_as(ALICE):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await searches.StartHyperSearch(iter([tuning_pb2.StartHyperSearchRequest(body=form)]))
            error = as_service_error(caught.value)
            assert (error.code, error.metadata["field"]) == (Code.INVALID_ARGUMENT, "algoDef.maxJobNum")
            assert await collect(searches.ListHyperSearches(tuning_pb2.ListHyperSearchesRequest())) == []
            # There is nothing to delete, and that is fine.
            assert await searches.DeleteAllHyperSearches(tuning_pb2.DeleteAllHyperSearchesRequest()) == Empty()
        assert not list((tmp_path / "tuning").iterdir())


async def test_migrations_may_be_repeated(database_url: str) -> None:
    database = Database(database_url, "tuning")
    await database.migrate(MIGRATIONS)
    await database.migrate(MIGRATIONS)
    await database.close()
