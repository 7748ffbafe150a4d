"""Versions, traffic and admission over gRPC, on a real database and disk; only the peers and Triton are played."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from dlmesh.inference.v1 import inference_pb2, inference_pb2_grpc, serving_pb2, serving_pb2_grpc
from google.protobuf import text_format
from inference_fakes import FakeCatalog, FakeJobs, FakeServer, FakeTrainings
from inference_service import wiring
from inference_service.settings import TritonSettings
from inference_service.usecases import admit_inference, residency
from inference_service.usecases.add_version import MAX_VERSIONS
from inference_service.usecases.ports import TrainingFacts
from inference_service.wiring import build
from servicekit.errors import not_found
from servicekit.settings import ServiceSettings
from sqlalchemy import event
from testkit.services import ADMIN, ALICE, BOB, Client, acting_as, collect, running, settings_for
from triton_fixtures import until, write_training
from tritonclient.grpc.model_config_pb2 import ModelConfig


class Trainings(FakeTrainings):
    """Several of one model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, TrainingFacts] = {}
        self.add("first")

    def add(self, name: str, status: str = "FINISHED", seed: int = 0, **serving: Any) -> None:
        code, checkpoints = write_training(self.folder / name, seed)
        file = checkpoints / "serving.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | serving))
        self.known[name] = TrainingFacts(f"t-{name}", name, status, str(code), str(checkpoints))

    async def get(self, model_name: str, name: str) -> TrainingFacts:
        if name not in self.known:
            raise not_found("training", name)
        return self.known[name]


@dataclass
class Room:
    """The running service with the model `online`."""

    client: Client
    settings: ServiceSettings
    catalog: FakeCatalog
    trainings: Trainings
    jobs: FakeJobs
    server: FakeServer
    process: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """A process of the service, on the state that an old one left."""
        built = build(
            self.settings,
            TritonSettings(),
            catalog=self.catalog,
            trainings=self.trainings,
            jobs=self.jobs,
            server=self.server,
        )
        self.client = await self.process.enter_async_context(running(built, self.settings))

    async def stop(self) -> None:
        await self.process.aclose()

    @property
    def stub(self) -> Any:
        return self.client.stub(serving_pb2_grpc.ServedModelServiceStub)

    @property
    def entry(self) -> Path:
        return self.settings.home / "inference" / "repository" / "online"

    async def create(self, name: str = "online") -> None:
        stub = self.client.stub(inference_pb2_grpc.InferenceServiceStub)
        await stub.CreateInferenceModel(
            inference_pb2.CreateInferenceModelRequest(
                model_name="digits", training_name="first", inference_model_name=name
            )
        )
        await self.reached("READY", name=name)

    async def get(self, name: str = "online") -> Any:
        return await self.stub.GetServedModel(serving_pb2.GetServedModelRequest(name=name))

    async def add(self, training: str = "second", **fields: str) -> Any:
        request = {"name": "online", "training_name": training} | fields
        return await self.stub.AddServedModelVersion(serving_pb2.AddServedModelVersionRequest(**request))

    async def reached(self, state: str, version: int = 1, name: str = "online") -> Any:
        async def there() -> Any:
            found = next((each for each in (await self.get(name)).versions if each.version == version), None)
            return found if found is not None and found.state == state else None

        return await until(there, 60)

    async def loop_sees_it(self) -> None:
        """What Triton has lost is known."""

        async def known() -> bool:
            return not (await self.get()).is_loaded

        await until(known)

    async def divide(self, *shares: tuple[int, int], name: str = "online") -> Any:
        pieces = [serving_pb2.TrafficShare(version=version, percentage=percentage) for version, percentage in shares]
        return await self.stub.SetTraffic(serving_pb2.SetTrafficRequest(name=name, shares=pieces))

    async def delete(self, version: str, name: str = "online") -> None:
        await self.stub.DeleteServedModelVersion(
            serving_pb2.DeleteServedModelVersionRequest(name=name, version=version)
        )

    async def admit(self, name: str = "online", **fields: Any) -> Any:
        stub = self.client.stub(serving_pb2_grpc.AdmissionServiceStub)
        return await stub.AdmitInference(serving_pb2.AdmitInferenceRequest(model_name=name, **fields))

    async def shares(self, **fields: Any) -> dict[int, int]:
        return {share.version: share.percentage for share in (await self.admit(**fields)).shares}


def offered(home: Path, name: str) -> frozenset[int]:
    """What Triton would read."""
    text = (home / "inference" / "repository" / name / "config.pbtxt").read_text()
    return frozenset(text_format.Parse(text, ModelConfig()).version_policy.specific.versions)


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(wiring, "REMOVALS_LATER_SECONDS", 0.1)
    catalog = FakeCatalog()
    catalog.add("digits")
    trainings = Trainings(tmp_path / "trainings")
    trainings.add("second")
    settings = settings_for("inference", tmp_path)
    room = Room(None, settings, catalog, trainings, FakeJobs(), FakeServer())  # type: ignore[arg-type]
    room.server.offered = lambda name: offered(tmp_path, name)
    await room.start()
    with acting_as(ALICE):
        await room.create()
        yield room
    await room.stop()


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_model_is_version_1_with_all_of_the_traffic(room: Room) -> None:
    model = await room.get()
    assert (model.name, model.owner, model.state, model.is_loaded) == ("online", "alice", "READY", True)
    assert model.last_used_at >= model.created_at
    [version] = model.versions
    assert (version.version, version.percentage, version.training_name, version.model_name) == (
        1,
        100,
        "first",
        "digits",
    )
    answer = await room.admit()
    assert [(share.version, share.percentage) for share in answer.shares] == [(1, 100)]
    assert answer.lifetime_seconds == 1.0


async def test_canary_then_rollback_then_rollout(room: Room) -> None:
    added = await room.add()
    assert (added.version, added.training_name, added.percentage) == (2, "second", 0)
    await room.reached("READY", 2)
    assert room.server.serving["online"] == {1, 2}
    assert await room.shares() == {1: 100}, "it answers nobody before it gets a share"
    model = await room.divide((1, 90), (2, 10))
    assert [version.percentage for version in model.versions] == [90, 10]
    answer = await room.admit()
    assert {share.version: share.percentage for share in answer.shares} == {1: 90, 2: 10}
    assert await room.shares(version="2") == {2: 100}
    await room.divide((1, 100))
    assert await room.shares() == {1: 100}
    await room.divide((2, 100))
    assert await room.shares() == {2: 100}
    loads = len(room.server.loads)
    await room.delete("1")

    async def gone() -> bool:
        return room.server.serving["online"] == {2} and not (room.entry / "1").exists()

    await until(gone)
    assert len(room.server.loads) == loads + 1
    assert [version.version for version in (await room.get()).versions] == [2]
    assert (await refused(room.admit(version="1")))[0] is grpc.StatusCode.NOT_FOUND
    # Numbers are never given twice.
    assert (await room.add("first")).version == 3


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((), "add up to 100"),
        (((1, 50),), "add up to 100"),
        (((1, 150), (2, -50)), "0 to 100"),
        (((1, 50), (7, 50)), "one of 1, 2"),
        (((1, 50), (1, 50)), "once"),
        (((1, 90), (2, 10)), "READY"),
    ],
)
async def test_shares_that_cannot_be(room: Room, shares: tuple[tuple[int, int], ...], words: str) -> None:
    room.server.refusal = "no"
    await room.add()
    await room.reached("FAILED", 2)
    code, message = await refused(room.divide(*shares))
    assert (code, words in message) == (grpc.StatusCode.INVALID_ARGUMENT, True), message
    assert await room.shares() == {1: 100}


async def test_a_version_that_triton_refuses_leaves_the_others_serving(room: Room) -> None:
    room.server.refusal = "version 2 is at UNAVAILABLE state: Missing key(s)"
    await room.add()
    failed = await room.reached("FAILED", 2)
    assert "Missing key(s)" in failed.status_message
    model = await room.get()
    assert (model.state, model.is_loaded) == ("READY", True)
    assert await room.shares() == {1: 100}
    code, message = await refused(room.admit(version="2"))
    assert (code, "Missing key(s)" in message) == (grpc.StatusCode.UNAVAILABLE, True)
    assert room.catalog.descriptions["online"].startswith("Serves")

    async def swept() -> bool:
        return not (room.entry / "2").exists()

    await until(swept)
    room.server.refusal = ""
    await room.delete("2")
    await room.add()
    await room.reached("READY", 3)


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"labels": ["dog", "cat", "owl"]}, "labels"),
        ({"labels": ["cat", "dog"]}, "labels"),
        ({"height": 7}, "inputs: INPUT__0 FP32 [1, 7, 6], of the model INPUT__0 FP32 [1, 4, 6]"),
    ],
)
async def test_a_training_with_other_inputs_or_labels_is_refused(
    room: Room, serving: dict[str, Any], words: str
) -> None:
    room.trainings.add("other", **serving)
    code, message = await refused(room.add("other"))
    assert (code, words in message) == (grpc.StatusCode.INVALID_ARGUMENT, True), message
    assert len((await room.get()).versions) == 1


async def test_a_training_that_says_what_goes_without_saying_is_no_other(room: Room) -> None:
    room.trainings.add("later", task="classification", note="new")
    await room.add("later")
    await room.reached("READY", 2)


async def test_what_differs_in_what_only_the_export_shows_fails(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference_service.storage import repository

    monkeypatch.setattr(repository, "fields", lambda _: ())
    room.trainings.add("other", height=7)
    await room.add("other")
    assert "[1, 7, 6]" in (await room.reached("FAILED", 2)).status_message
    assert room.server.serving["online"] == {1}
    assert offered(room.settings.home, "online") == {1}


async def test_additions_that_cannot_be(room: Room) -> None:
    room.trainings.add("running", status="RUNNING")
    for call, code, words in (
        (room.add(""), grpc.StatusCode.INVALID_ARGUMENT, "trainName"),
        (room.add("none"), grpc.StatusCode.NOT_FOUND, "none"),
        (room.add(name="none"), grpc.StatusCode.NOT_FOUND, "none"),
        (room.add(model_name="none"), grpc.StatusCode.NOT_FOUND, "none"),
        (room.add("running"), grpc.StatusCode.INVALID_ARGUMENT, "RUNNING"),
    ):
        got, message = await refused(call)
        assert (got, words in message) == (code, True), message
    room.server.missing = "Triton is switched off"
    assert await refused(room.add()) == (grpc.StatusCode.UNAVAILABLE, "Triton is switched off")
    room.server.missing = ""
    for _ in range(MAX_VERSIONS - 1):
        await room.add()
    assert (await refused(room.add()))[0] is grpc.StatusCode.ABORTED


async def test_deletions_that_cannot_be(room: Room) -> None:
    await room.add()
    await room.reached("READY", 2)
    await room.divide((1, 99), (2, 1))
    for version in ("1", "2"):
        code, message = await refused(room.delete(version))
        assert (code, "% of the traffic" in message) == (grpc.StatusCode.ABORTED, True)
    for version in ("3", "x", "", "²", "-1"):
        assert (await refused(room.delete(version)))[0] is grpc.StatusCode.NOT_FOUND
    assert len((await room.get()).versions) == 2


async def test_others_models_are_forbidden_and_unknown_ones_unknown(room: Room) -> None:
    await room.add()
    await room.reached("READY", 2)
    with acting_as(BOB):
        assert await collect(room.stub.ListServedModels(serving_pb2.ListServedModelsRequest())) == []
        for call in (room.get(), room.add(), room.divide((2, 100)), room.delete("2"), room.admit()):
            assert (await refused(call))[0] is grpc.StatusCode.PERMISSION_DENIED
    with acting_as(ADMIN):
        [model] = await collect(room.stub.ListServedModels(serving_pb2.ListServedModelsRequest()))
        assert model.name == "online"
        assert await room.shares() == {1: 100}
        assert (await room.get()).owner == "alice"
    for call in (room.get("no"), room.divide((1, 100), name="no"), room.delete("1", "no"), room.admit("no")):
        assert (await refused(call))[0] is grpc.StatusCode.NOT_FOUND
    assert (await refused(room.admit(version="newest")))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_not_ready_is_unavailable_with_its_state(room: Room) -> None:
    room.server.is_away = True
    stub = room.client.stub(inference_pb2_grpc.InferenceServiceStub)
    request = inference_pb2.CreateInferenceModelRequest(
        model_name="digits", training_name="first", inference_model_name="later"
    )
    await stub.CreateInferenceModel(request)

    async def waits() -> bool:
        return "does not answer" in (await room.get("later")).status_message

    await until(waits)
    code, message = await refused(room.admit("later"))
    assert (code, "LOADING: Triton does not answer" in message) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_an_idle_model_is_loaded_by_an_admission_and_not_by_a_look(room: Room) -> None:
    await room.stop()
    # As after a start that comes long after the last use.
    database = sa.create_engine(f"sqlite:///{room.settings.home / 'db' / 'inference.sqlite'}")
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE inference_models SET last_used_at = '2020-01-01 00:00:00.000000'"))
    database.dispose()
    room.server.serving.clear()
    room.server.loads.clear()
    await room.start()
    assert (await room.get()).is_loaded is False
    await room.admit(is_look=True)
    assert room.server.loads == []
    assert await asyncio.gather(*(room.shares() for _ in range(30))) == [{1: 100}] * 30
    assert room.server.loads == ["online"]
    assert (await room.get()).is_loaded is True


async def test_shares_that_change_while_it_is_loaded_are_in_force_for_who_waited(room: Room) -> None:
    await room.add()
    await room.reached("READY", 2)
    room.server.may_load.clear()
    room.server.serving.clear()
    loads = len(room.server.loads)
    await room.loop_sees_it()
    waiting = asyncio.create_task(room.shares())

    async def asked() -> bool:
        return len(room.server.loads) > loads

    await until(asked)
    await room.divide((2, 100))
    room.server.may_load.set()
    assert await waiting == {2: 100}


async def test_admissions_do_not_ask_the_database(room: Room) -> None:
    await room.admit()
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    # Of all engines of this process.
    event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        for _ in range(200):
            await room.admit()
        read = [statement for statement in statements if "FROM inference_models" in statement]
        assert len(read) < 20, "as often as the loops write, not for each of 200 admissions"
        statements.clear()
        await room.divide((1, 100))
        assert any("model_versions" in statement for statement in statements)
    finally:
        event.remove(sa.Engine, "before_cursor_execute", note)


async def test_what_served_before_is_not_given_up_when_triton_ends(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "CRASH_PAUSE_SECONDS", 0.1)
    room.server.dies_on_load = True
    room.server.serving.clear()
    await room.loop_sees_it()

    async def paused() -> bool:
        return "Triton ended 5 times" in (await refused(room.admit()))[1]

    await until(paused, 60)
    assert (await room.get()).state == "READY"
    room.server.dies_on_load = False

    async def is_back() -> bool:
        return bool((await room.get()).is_loaded)

    await until(is_back, 60)
    assert await room.shares() == {1: 100}


def test_shares_are_of_those_that_are_ready() -> None:
    from inference_service.domain.models import ModelState
    from triton_fixtures import make_model

    model = make_model("m", Path(), Path())
    first = model.versions[0]
    model.versions = [
        replace(first, number=number, state=state, percentage=percentage)
        for number, state, percentage in (
            (1, ModelState.READY, 60),
            (2, ModelState.FAILED, 30),
            (3, ModelState.READY, 10),
        )
    ]
    assert admit_inference._divided(model) == {1: 90, 3: 10}


async def test_a_deleted_model_takes_all_versions_along(room: Room) -> None:
    await room.add()
    await room.reached("READY", 2)
    del room.catalog.known["online"]

    async def gone() -> bool:
        return not room.entry.exists() and "online" not in room.server.serving

    await until(gone)

    async def forgotten() -> bool:
        return not await collect(room.stub.ListServedModels(serving_pb2.ListServedModelsRequest()))

    await until(forgotten)


async def test_a_new_process_goes_on_with_a_version_and_its_leftovers(room: Room) -> None:
    room.server.is_away = True
    await room.add()
    await room.reached("LOADING", 2)
    await room.stop()
    # What a process that was killed left: a folder of a version whose row is gone.
    shutil.copytree(room.entry / "2", room.entry / "9")
    room.server.is_away = False
    await room.start()
    await room.reached("READY", 2)

    async def swept() -> bool:
        return sorted(path.name for path in room.entry.glob("[0-9]*")) == ["1", "2"]

    await until(swept)
    assert room.server.serving["online"] == {1, 2}
