"""A real Triton serves what the exporter makes: right values, words on refusal, and it comes back when killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import torch
import tritonclient.grpc as tritongrpc
from inference_service.clients.triton import TritonClient
from inference_service.storage.repository import DiskRepository
from inference_service.triton.addresses import read_grpc_address
from inference_service.triton.installation import Installation, find_installation
from inference_service.triton.memory import ModelMemory
from inference_service.triton.server import TritonServer
from inference_service.triton.stubs import running_stubs
from inference_service.usecases.ports import LoadRefusedError, ServerAwayError
from servicekit.reconcile import ReconcileLoop
from triton_fixtures import LABELS, SHAPE, ServedHome, expected, make_model, until, write_training

pytestmark = pytest.mark.triton


def infer(address_file: Path, name: str, inputs: Any, classes: int = 0) -> Any:
    with tritongrpc.InferenceServerClient(read_grpc_address(address_file)) as client:
        tensor = tritongrpc.InferInput("INPUT__0", list(inputs.shape), "FP32")
        tensor.set_data_from_numpy(inputs)
        output = tritongrpc.InferRequestedOutput("OUTPUT__0", class_count=classes)
        return client.infer(name, [tensor], outputs=[output]).as_numpy("OUTPUT__0")


@pytest.fixture
def installation() -> Installation:
    """For servers that a test starts itself."""
    found = find_installation()
    if found is None:
        pytest.skip("Triton is not installed: run make setup")
    return found


def random_inputs(count: int) -> Any:
    return np.random.default_rng(7).random((count, *SHAPE), np.float32)


async def test_values_are_those_of_torch_in_this_process(triton: ServedHome) -> None:
    first, second = await triton.serve("values-a", seed=1), await triton.serve("values-b", seed=2)
    inputs = random_inputs(9)
    for name, checkpoints in (("values-a", first), ("values-b", second)):
        answers = await asyncio.to_thread(infer, triton.address_file, name, inputs)
        np.testing.assert_allclose(answers, expected(checkpoints, inputs), rtol=1e-5)
    assert not np.allclose(expected(first, inputs), expected(second, inputs))


async def test_batched_callers_each_get_their_own_answer(triton: ServedHome) -> None:
    checkpoints = await triton.serve("batched")
    inputs = random_inputs(24)
    answers = await asyncio.gather(
        *(asyncio.to_thread(infer, triton.address_file, "batched", inputs[i : i + 1]) for i in range(len(inputs)))
    )
    np.testing.assert_allclose(np.concatenate(answers), expected(checkpoints, inputs), rtol=1e-5)


TELLS_ROWS = """
import torch

class Tells(torch.nn.Module):
    def forward(self, images):
        means = images.flatten(1).mean(1)
        return torch.stack([torch.full_like(means, len(images)).log(), torch.zeros_like(means), means], 1)

def build_model(num_classes, channels, height, width):
    return Tells()

def preprocess(image, **shape):
    raise NotImplementedError
"""


async def test_large_batches_pass_in_parts_and_stay_in_order(triton: ServedHome) -> None:
    code, checkpoints = write_training(triton.home / "trainings" / "parts")
    (code / "model.py").write_text(TELLS_ROWS)
    sides = {"channels": 3, "height": 200, "width": 200}
    (checkpoints / "serving.json").write_text(json.dumps({"labels": LABELS, "framework": "PyTorch", **sides}))
    torch.save({}, checkpoints / "model_epoch_final.pth")
    await triton.repository.publish(make_model("parts", code, checkpoints))
    client = triton.client()
    await client.load("parts")
    await client.close()
    inputs = np.random.default_rng(3).random((20, 3, 200, 200), np.float32)
    inputs *= np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
    answers = await asyncio.to_thread(infer, triton.address_file, "parts", inputs)
    # Of 120,000 numbers each: 2.4 million need three passes.
    np.testing.assert_allclose(answers[:, 0] / answers[:, 1], [7] * 14 + [6] * 6, rtol=1e-4)
    np.testing.assert_allclose(np.log(answers[:, 2] / answers[:, 1]), inputs.mean((1, 2, 3)), rtol=1e-4)


async def test_triton_knows_the_labels(triton: ServedHome) -> None:
    checkpoints = await triton.serve("labelled")
    inputs = random_inputs(1)
    best = await asyncio.to_thread(infer, triton.address_file, "labelled", inputs, 1)
    assert best.item().decode().split(":")[-1] == LABELS[int(expected(checkpoints, inputs).argmax())]


async def test_load_probe_unload(triton: ServedHome) -> None:
    client = triton.client()
    await triton.serve("come-and-go")
    await client.probe("come-and-go", 1)
    assert "come-and-go" in await client.loaded()
    await client.load("come-and-go")
    await client.unload("come-and-go")
    await client.unload("never-was")

    async def gone() -> bool:
        return "come-and-go" not in await client.loaded()

    await until(gone)
    with pytest.raises(LoadRefusedError):
        await client.probe("come-and-go", 1)
    await client.close()


async def test_a_model_whose_process_was_killed_is_noticed_and_loading_heals_it(triton: ServedHome) -> None:
    await triton.serve("killed")
    client = triton.client()
    repository = triton.home / "inference" / "repository"
    assert await client.answers("killed", 1)

    async def noticed() -> bool:
        return await client.answers("killed", 1) is False

    for _ in range(2):
        stubs = running_stubs(triton.pid, repository)
        assert ("killed", 1) in stubs
        for pid in stubs["killed", 1]:
            psutil.Process(pid).kill()
        await until(noticed, 60)
        assert ("killed", 1) not in running_stubs(triton.pid, repository)
        await triton.repository.touch("killed", [1])
        await client.load("killed")
        await client.probe("killed", 1)
    await client.close()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import not_there", "not_there"),
        ("def build_model(**_):\n    raise ValueError('no such shape')", "build_model|no such shape"),
        ("from torch import nn\ndef build_model(n, **_):\n    return nn.Linear(1, n)", "state_dict"),
    ],
)
async def test_a_program_that_does_not_load_is_refused_with_its_own_words(
    triton: ServedHome, program: str, words: str
) -> None:
    name = f"bad-{abs(hash(program)) % 10**6}"
    code, checkpoints = write_training(triton.home / "trainings" / name)
    (code / "model.py").write_text(program)
    await triton.repository.publish(make_model(name, code, checkpoints))
    client = triton.client()
    with pytest.raises(LoadRefusedError, match=words):
        await client.load(name)
    await client.close()


async def test_nobody_there_is_away() -> None:
    for address in (None, "127.0.0.1:1"):
        client = TritonClient(lambda address=address: address)  # type: ignore[misc]
        with pytest.raises(ServerAwayError):
            await client.loaded()
        await client.close()


SPINS = """
from torch import nn

class Spins(nn.Flatten):
    def forward(self, inputs):
        while True:
            pass

def build_model(num_classes, channels, height, width):
    return nn.Sequential(Spins(), nn.Linear(channels * height * width, num_classes))

def preprocess(image, **shape):
    raise NotImplementedError
"""


async def test_a_model_that_never_returns_does_not_outlive_its_triton(
    installation: Installation, tmp_path: Path
) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    (code / "model.py").write_text(SPINS)
    await DiskRepository(tmp_path).publish(make_model("spins", code, checkpoints))
    server = TritonServer(installation, tmp_path)
    client = TritonClient(lambda: read_grpc_address(tmp_path / "inference" / "triton.json"), key=server.key)

    async def loads() -> bool:
        await server.step()
        try:
            await client.load("spins")
        except ServerAwayError:
            return False
        return True

    try:
        await until(loads, 60)
        asked = asyncio.create_task(client.answers("spins", 1))
        [(pid,)] = server.model_processes().values()
        stub = psutil.Process(pid)
        before = stub.cpu_times().user

        async def spins() -> bool:
            return stub.cpu_times().user > before + 0.5

        await until(spins)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.wait([asked])

        async def has_ended() -> bool:
            await server.step()
            return not stub.is_running()

        await until(has_ended)
    finally:
        await client.close()
        await server.stop()


async def test_a_model_that_takes_too_much_memory_is_refused_with_the_reason(
    installation: Installation, tmp_path: Path
) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    await DiskRepository(tmp_path).publish(make_model("greedy", code, checkpoints))
    server = TritonServer(installation, tmp_path)
    # Less than Python itself takes.
    memory = ModelMemory(server.model_processes, 5 * 1024**2)
    address_file = tmp_path / "inference" / "triton.json"
    client = TritonClient(lambda: read_grpc_address(address_file), key=server.key, why_ended=memory.why_ended)

    async def is_live() -> bool:
        await server.step()
        try:
            await client.loaded()
        except ServerAwayError:
            return False
        return True

    loop = ReconcileLoop("memory", memory.step, later_seconds=0.05)
    try:
        await until(is_live, 60)
        watching = asyncio.create_task(loop.run())
        with pytest.raises(
            LoadRefusedError, match=r"held .* of memory; allowed are 5 MiB \(DLMESH_MODEL_MEMORY_BYTES\)"
        ):
            await client.load("greedy")
        loop.stop()
        await watching
        await client.load("greedy")
    finally:
        await client.close()
        await server.stop()


async def test_killed_it_comes_back_on_its_ports_and_serves(installation: Installation, tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    await DiskRepository(tmp_path).publish(make_model("tiny", code, checkpoints))
    server = TritonServer(installation, tmp_path)
    loop = ReconcileLoop("triton", server.step, soon_seconds=0.05, later_seconds=0.05)
    running = asyncio.create_task(loop.run())
    address_file = tmp_path / "inference" / "triton.json"
    client = TritonClient(lambda: read_grpc_address(address_file), key=server.key)
    stranger = TritonClient(lambda: read_grpc_address(address_file))
    inputs = random_inputs(3)

    async def loads() -> bool:
        try:
            await client.load("tiny")
        except ServerAwayError:
            return False
        return True

    try:
        addresses, family = "", []
        for _ in range(2):
            await until(loads, 60)
            answers = await asyncio.to_thread(infer, address_file, "tiny", inputs)
            np.testing.assert_allclose(answers, expected(checkpoints, inputs), rtol=1e-5)
            assert addresses in ("", address_file.read_text())
            addresses = address_file.read_text()
            with pytest.raises(ServerAwayError, match="restricted"):
                await stranger.load("tiny")
            url = f"{json.loads(addresses)['http']}/v2/repository/models/tiny/unload"
            assert not (await asyncio.to_thread(requests.post, url, json={}, timeout=60)).ok
            assert server.pid is not None
            family += [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            os.kill(server.pid, signal.SIGKILL)
        assert len(family) >= 4, "a server and a stub, twice"
        await until(loads, 60)
        assert (tmp_path / "log" / "triton.log").stat().st_mode & 0o077 == 0
    finally:
        loop.stop()
        await running
        await client.close()
        await stranger.close()
        await server.stop()

    async def nothing_is_left() -> bool:
        return not any(process.is_running() for process in family) and server.pid is None

    await until(nothing_is_left)
