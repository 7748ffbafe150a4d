"""The whole service with a real Triton: versions come and go under load, it is killed, hangs, is somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from dlmesh.inference.v1 import inference_pb2, inference_pb2_grpc, serving_pb2, serving_pb2_grpc
from inference_fakes import FakeCatalog, FakeJobs
from inference_service.settings import TritonSettings
from inference_service.triton.addresses import read_grpc_address
from inference_service.triton.installation import find_installation
from inference_service.triton.liveness import Liveness
from inference_service.triton.server import TritonServer
from inference_service.triton.stubs import running_stubs
from inference_service.wiring import build
from servicekit.reconcile import ReconcileLoop
from test_served_models import Trainings
from testkit.services import ALICE, Client, acting_as, running, settings_for
from triton_fixtures import SHAPE, ServedHome, expected, served, until
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.triton, pytest.mark.slow]
PATIENCE_SECONDS = 180
NAMES = ("first", "second", "third")


class Room:
    """The service and what clients do with its Triton."""

    def __init__(self, home: Path) -> None:
        self.home, self.catalog, self.trainings = home, FakeCatalog(), Trainings(home / "trainings")
        self.catalog.add("digits")
        for seed, name in enumerate(NAMES[1:], 1):
            self.trainings.add(name, seed=seed)
        self.client: Client = None  # type: ignore[assignment]
        self.inputs = np.random.default_rng(7).random((1, *SHAPE), np.float32)

    @property
    def repository(self) -> Path:
        return self.home / "inference" / "repository"

    @property
    def stub(self) -> Any:
        return self.client.stub(serving_pb2_grpc.ServedModelServiceStub)

    @contextlib.asynccontextmanager
    async def started(self, settings: TritonSettings) -> AsyncIterator[Room]:
        service = settings_for("inference", self.home)
        built = build(service, settings, catalog=self.catalog, trainings=self.trainings, jobs=FakeJobs())
        async with running(built, service) as self.client:
            with acting_as(ALICE):
                yield self

    async def create(self, name: str, training: str = "first") -> None:
        stub = self.client.stub(inference_pb2_grpc.InferenceServiceStub)
        await stub.CreateInferenceModel(
            inference_pb2.CreateInferenceModelRequest(
                model_name="digits", training_name=training, inference_model_name=name
            )
        )
        await self.reached("READY", name)

    async def add(self, name: str, training: str) -> None:
        request = serving_pb2.AddServedModelVersionRequest(name=name, training_name=training)
        await self.stub.AddServedModelVersion(request)

    async def get(self, name: str) -> Any:
        return await self.stub.GetServedModel(serving_pb2.GetServedModelRequest(name=name))

    async def reached(self, state: str, name: str, version: int = 1) -> Any:
        async def there() -> Any:
            found = (await self.get(name)).versions[version - 1]
            assert found.state in (state, "EXPORTING", "LOADING"), found.status_message
            return found if found.state == state else None

        return await until(there, PATIENCE_SECONDS)

    async def divide(self, name: str, **shares: int) -> None:
        pieces = [serving_pb2.TrafficShare(version=int(key[1:]), percentage=each) for key, each in shares.items()]
        await self.stub.SetTraffic(serving_pb2.SetTrafficRequest(name=name, shares=pieces))

    async def admit(self, name: str) -> dict[int, int]:
        """As often as it takes while it cannot be, as clients of the gateway do."""
        stub = self.client.stub(serving_pb2_grpc.AdmissionServiceStub)

        async def admitted() -> Any:
            try:
                return await stub.AdmitInference(serving_pb2.AdmitInferenceRequest(model_name=name))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return None

        answer = await until(admitted, PATIENCE_SECONDS)
        return {share.version: share.percentage for share in answer.shares}

    @contextlib.asynccontextmanager
    async def triton(self) -> AsyncIterator[Callable[[str, int], Any]]:
        """A function that infers with a version and gives its probabilities."""
        file = self.home / "inference" / "triton.json"

        async def started() -> str | None:
            return read_grpc_address(file)

        client = InferenceServerClient(await until(started, PATIENCE_SECONDS))

        async def infer(name: str, version: int) -> Any:
            tensor = InferInput("INPUT__0", list(self.inputs.shape), "FP32")
            tensor.set_data_from_numpy(self.inputs)
            return (await client.infer(name, [tensor], model_version=str(version))).as_numpy("OUTPUT__0")

        try:
            yield infer
        finally:
            await client.close()

    def right(self, training: str) -> Any:
        return expected(Path(self.trainings.known[training].checkpoints_path), self.inputs)

    async def answers(self, infer: Callable[[str, int], Any], name: str, version: int, training: str) -> bool:
        """Admit and infer until there is an answer, and look at it."""

        async def answered() -> Any:
            await self.admit(name)
            with contextlib.suppress(InferenceServerException):
                return [await infer(name, version)]
            return None

        [values] = await until(answered, PATIENCE_SECONDS)
        np.testing.assert_allclose(values, self.right(training), rtol=1e-5)
        return True


@pytest.fixture(scope="module")
def installation() -> Any:
    found = find_installation()
    if found is None:
        pytest.skip("Triton is not installed: run make setup")
    return found


async def test_versions_come_and_go_while_clients_infer(installation: Any, tmp_path: Path) -> None:
    async with Room(tmp_path).started(TritonSettings(installation)) as room, room.triton() as infer:
        await room.create("online")
        done, seen = asyncio.Event(), Counter[int]()
        right = {number: room.right(name) for number, name in enumerate(NAMES, 1)}

        async def client(seed: int) -> None:
            """Any error, and any answer of another version than asked, ends the test."""
            choose = np.random.default_rng(seed)
            while not done.is_set():
                shares = await room.admit("online")
                version = int(choose.choice(list(shares), p=[each / 100 for each in shares.values()]))
                np.testing.assert_allclose(await infer("online", version), right[version], rtol=1e-5)
                seen[version] += 1

        async def asked(version: int) -> None:
            before = seen[version]

            async def more() -> bool:
                assert not any(task.done() for task in clients), "a client saw an error"
                return seen[version] > before + 20

            await until(more, PATIENCE_SECONDS)

        clients = [asyncio.create_task(client(seed)) for seed in range(4)]
        await asked(1)
        await room.add("online", "second")
        await room.reached("READY", "online", 2)
        await asked(1)
        assert set(seen) == {1}
        first = running_stubs(server_of(room.repository), room.repository)["online", 1]
        await room.divide("online", v1=50, v2=50)
        await asked(2)
        # One that cannot be loaded hurts nobody.
        code = Path(room.trainings.known["third"].code_path)
        program = (code / "model.py").read_text()
        (code / "model.py").write_text("import not_there")
        await room.add("online", "third")

        async def failed() -> bool:
            return (await room.get("online")).versions[2].state == "FAILED"

        await until(failed, PATIENCE_SECONDS)
        assert "not_there" in (await room.get("online")).versions[2].status_message
        await asked(1)
        await asked(2)
        (code / "model.py").write_text(program)
        await room.divide("online", v2=100)
        await asked(2)
        assert running_stubs(server_of(room.repository), room.repository)["online", 1] == first, (
            "nobody was loaded again"
        )
        request = serving_pb2.DeleteServedModelVersionRequest(name="online", version="1")
        await room.stub.DeleteServedModelVersion(request)

        async def gone() -> bool:
            return not (room.repository / "online" / "1").exists()

        await until(gone, PATIENCE_SECONDS)
        await asked(2)
        done.set()
        await asyncio.gather(*clients)
        assert set(seen) == {1, 2}
        with pytest.raises(InferenceServerException):
            await infer("online", 1)


async def test_killed_models_and_servers_come_back(installation: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from inference_service.usecases import model_health

    monkeypatch.setattr(model_health, "LOOK_SECONDS", 0.2)
    async with Room(tmp_path).started(TritonSettings(installation, max_loaded_models=2)) as room:
        await room.create("one")
        await room.create("two", "second")
        async with room.triton() as infer:
            server = server_of(room.repository)
            for _ in range(2):
                [stub] = running_stubs(server, room.repository)["one", 1]
                os.kill(stub, signal.SIGKILL)

                async def revived(stub: int = stub) -> bool:
                    return running_stubs(server, room.repository).get(("one", 1), [stub]) != [stub]

                await until(revived, PATIENCE_SECONDS)
                assert await room.answers(infer, "one", 1, "first")
            os.kill(server, signal.SIGKILL)
            for name, training in (("one", "first"), ("two", "second")):
                assert await room.answers(infer, name, 1, training)
            assert server_of(room.repository) != server
            # A third takes the place of the one that was used least.
            await room.create("three", "third")
            assert await room.answers(infer, "three", 1, "third")
            loaded = {name: (await room.get(name)).is_loaded for name in ("one", "two", "three")}
            assert loaded == {"one": False, "two": True, "three": True}

            async def has_ended() -> bool:
                return ("one", 1) not in running_stubs(server_of(room.repository), room.repository)

            # Triton says that it has unloaded a model before the model's process has ended.
            await until(has_ended, PATIENCE_SECONDS)
            assert await room.answers(infer, "one", 1, "first")


async def test_a_program_that_loads_for_ever_is_ended(installation: Any, tmp_path: Path) -> None:
    settings = TritonSettings(installation, model_load_seconds=5)
    async with Room(tmp_path).started(settings) as room:
        code = Path(room.trainings.known["first"].code_path)
        (code / "model.py").write_text("while True:\n    pass\n")
        stub = room.client.stub(inference_pb2_grpc.InferenceServiceStub)
        request = inference_pb2.CreateInferenceModelRequest(
            model_name="digits", training_name="first", inference_model_name="loop"
        )
        await stub.CreateInferenceModel(request)

        async def failed() -> bool:
            return (await room.get("loop")).state == "FAILED"

        await until(failed, PATIENCE_SECONDS)
        assert "within 5 s" in (await room.get("loop")).status_message

        async def ended() -> bool:
            return not running_stubs(server_of(room.repository), room.repository)

        await until(ended, PATIENCE_SECONDS)


async def test_a_triton_that_hangs_is_killed_and_another_started(installation: Any, tmp_path: Path) -> None:
    starts: list[int] = []
    server = TritonServer(
        installation, tmp_path, lambda: starts.append(1), lambda: Liveness(look_seconds=0.05, patience_seconds=1.0)
    )
    loop = ReconcileLoop("triton", server.step, soon_seconds=0.05, later_seconds=0.05)
    running_loop = asyncio.create_task(loop.run())
    address_file = tmp_path / "inference" / "triton.json"

    async def live() -> bool:
        address = read_grpc_address(address_file)
        if server.pid is None or address is None:
            return False
        async with InferenceServerClient(address) as client:
            with contextlib.suppress(InferenceServerException):
                return bool(await client.is_server_live(client_timeout=2))
        return False

    try:
        await until(live, PATIENCE_SECONDS)
        first = server.pid
        assert first is not None

        async def was_seen() -> bool:
            return server._liveness._was_live

        await until(was_seen, PATIENCE_SECONDS)
        os.kill(first, signal.SIGSTOP)

        async def replaced() -> bool:
            return server.pid not in (None, first)

        await until(replaced, PATIENCE_SECONDS)
        await until(live, PATIENCE_SECONDS)
        assert len(starts) == 2
        assert not psutil.pid_exists(first)
    finally:
        loop.stop()
        await running_loop
        await server.stop()


async def test_one_of_somebody_elses_on_the_same_repository(tmp_path: Path) -> None:
    with served(tmp_path) as other:
        address = read_grpc_address(other.address_file)
        http = json.loads(other.address_file.read_text())["http"]
        async with Room(tmp_path).started(TritonSettings(url=http, grpc=str(address))) as room, room.triton() as infer:
            await room.create("online")
            assert await room.answers(infer, "online", 1, "first")
            await room.add("online", "second")
            await room.reached("READY", "online", 2)
            np.testing.assert_allclose(await infer("online", 2), room.right("second"), rtol=1e-5)
            # It unloads it by itself, or is started anew: the loop loads what is used.
            client = ServedHome(tmp_path).client()
            await client.unload("online")
            assert await room.answers(infer, "online", 2, "second")
            await client.close()


def server_of(repository: Path) -> int:
    """The Triton of this repository; other tests may keep one, too."""
    servers = [child for child in psutil.Process().children() if child.name() == "tritonserver"]
    [server] = [child for child in servers if f"--model-repository={repository}" in child.cmdline()]
    return int(server.pid)
