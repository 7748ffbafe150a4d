"""A tiny trained model on disk, and a real Triton that serves what our exporter makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from inference_service.clients.triton import TritonClient
from inference_service.domain.models import InferenceModel, ModelVersion
from inference_service.storage.repository import DiskRepository
from inference_service.triton.addresses import read_grpc_address
from inference_service.triton.installation import Ports, find_installation
from inference_service.triton.server import PORTS, SHARED_MEMORY, is_free, publish_addresses
from servicekit.times import utc_now

LABELS = ["cat", "dog", "owl"]
SHAPE = (1, 4, 6)
PROGRAM = """
import numpy as np
from torch import nn

def build_model(num_classes, channels, height, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

def preprocess(image, channels, height, width):
    image = image.convert("L").resize((width, height))
    return np.asarray(image, np.float32)[None] / 255
"""


def write_training(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Code and checkpoints of a training that never ran; returns both folders."""
    code, checkpoints = folder / "code", folder / "checkpoints"
    code.mkdir(parents=True)
    checkpoints.mkdir()
    (code / "model.py").write_text(PROGRAM)
    sides = dict(zip(("channels", "height", "width"), SHAPE, strict=True))
    (checkpoints / "serving.json").write_text(json.dumps({"labels": LABELS, "framework": "PyTorch", **sides}))
    torch.manual_seed(seed)
    torch.save(make_network().state_dict(), checkpoints / "model_epoch_final.pth")
    return code, checkpoints


def make_network() -> torch.nn.Module:
    channels, height, width = SHAPE
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * height * width, len(LABELS)))


def expected(checkpoints: Path, inputs: Any) -> Any:
    """What torch says in this process."""
    network = make_network()
    network.load_state_dict(torch.load(checkpoints / "model_epoch_final.pth", weights_only=True))
    with torch.no_grad():
        return torch.softmax(network(torch.from_numpy(inputs)), 1).numpy()


def make_model(name: str, code: Path, checkpoints: Path, number: int = 1, **changes: Any) -> InferenceModel:
    """With one version; `changes` are of it or of the model."""
    version = {
        "source_model": "digits",
        "training_name": "first",
        "framework": "PyTorch",
        "code_path": str(code),
        "checkpoints_path": str(checkpoints),
        "created_at": utc_now(),
    }
    of_version = {key: value for key, value in changes.items() if key in version}
    values = {
        "uid": f"uid-{name}",
        "name": name,
        "owner": "alice",
        "source_model": "digits",
        "template_name": "template",
        "dataset_name": "digits",
        "instance_group": "local",
        "created_at": version["created_at"],
        "versions": [ModelVersion(number, percentage=100, **(version | of_version))],  # type: ignore[arg-type]
    }
    return InferenceModel(**(values | {key: value for key, value in changes.items() if key not in version}))


class ServedHome:
    """A home whose model repository a real Triton serves."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = DiskRepository(home)
        self.address_file = home / "inference" / "triton.json"
        # Of the server.
        self.pid = 0

    def client(self) -> TritonClient:
        """Close it in the loop that used it."""
        return TritonClient(lambda: read_grpc_address(self.address_file))

    async def serve(self, name: str, seed: int = 0, program: str = PROGRAM) -> Path:
        """Export and load a tiny model; returns its checkpoints."""
        code, checkpoints = write_training(self.home / "trainings" / name, seed)
        (code / "model.py").write_text(program)
        await self.repository.publish(make_model(name, code, checkpoints))
        client = self.client()
        await client.load(name)
        await client.close()
        return checkpoints


@contextlib.contextmanager
def served(home: Path) -> Iterator[ServedHome]:
    """A Triton without supervision; skips when none is installed."""
    installation = find_installation()
    if installation is None:
        pytest.skip("Triton is not installed: run make setup")
    room = ServedHome(home)
    repository = home / "inference" / "repository"
    repository.mkdir(parents=True)
    ports = Ports(*_three_free())
    publish_addresses(room.address_file, ports)
    prefix = f"dlmesh_test_{os.getpid()}_"
    with (home / "triton.log").open("wb") as log:
        process = subprocess.Popen(
            installation.confined(home, installation.command(repository, ports, prefix)),
            env=installation.environment(),
            stdout=log,
            stderr=log,
        )
    room.pid = process.pid
    try:
        _await_ready(process, f"http://127.0.0.1:{ports.http}/v2/health/ready")
        yield room
    finally:
        process.terminate()
        process.wait(15)
        for region in SHARED_MEMORY.glob(f"{prefix}*"):
            region.unlink()


def _three_free() -> list[int]:
    return [port for port in random.sample(PORTS, 50) if is_free(port)][:3]


def _await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            requests.get(url, timeout=1).raise_for_status()
            return
        time.sleep(0.05)
    raise AssertionError(f"Triton did not come up: {process.poll()}")


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """Poll until `condition` gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        await asyncio.sleep(0.05)
    return found
