"""A tiny trained model on disk, and a real Triton that serves what our exporter makes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
from inference_service.clients.triton import TritonClient
from inference_service.domain.models import InferenceModel
from inference_service.storage.repository import DiskRepository
from inference_service.triton.installation import Installation
from inference_service.triton.server import TritonServer, read_grpc_address
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


def make_model(name: str, code: Path, checkpoints: Path, **changes: Any) -> InferenceModel:
    values = {
        "uid": f"uid-{name}",
        "name": name,
        "owner": "alice",
        "source_model": "digits",
        "training_name": "first",
        "framework": "PyTorch",
        "template_name": "template",
        "dataset_name": "digits",
        "instance_group": "local",
        "code_path": str(code),
        "checkpoints_path": str(checkpoints),
        "created_at": utc_now(),
    }
    return InferenceModel(**(values | changes))


class RealTriton:
    """A supervised server of its own home; `keep` runs its loop as long as the block lasts."""

    def __init__(self, installation: Installation, home: Path) -> None:
        self.home = home
        self.repository = DiskRepository(home)
        self.server = TritonServer(installation, home)
        self.address_file = home / "run" / "triton.json"
        self.client = TritonClient(lambda: read_grpc_address(self.address_file))

    async def __aenter__(self) -> RealTriton:
        self._loop = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.cancel()
        await self.client.close()
        await self.server.stop()

    async def until_ready(self, name: str, seconds: float = 60) -> None:
        """Load the model as soon as the server answers."""
        await until(lambda: self._try_load(name), seconds)

    async def _try_load(self, name: str) -> bool:
        from inference_service.usecases.ports import ServerAwayError

        try:
            await self.client.load(name)
        except ServerAwayError:
            return False
        return True

    async def _keep(self) -> None:
        while True:
            await self.server.step()
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """Poll until `condition` gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        await asyncio.sleep(0.05)
    return found
