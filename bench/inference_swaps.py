"""Two models that take turns in Triton's memory: what each swap leaves behind, and how long it takes (R12)."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from inference_service.clients.triton import TritonClient
from inference_service.domain.models import InferenceModel, ModelVersion
from inference_service.storage.repository import DiskRepository
from inference_service.triton.addresses import address_file, read_grpc_address
from inference_service.triton.installation import find_installation
from inference_service.triton.server import TritonServer
from inference_service.usecases.ports import ServerAwayError
from report import Row, announce
from servicekit.reconcile import ReconcileLoop
from servicekit.times import utc_now
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

SWAPS, WARM_SWAPS = 200, 20
NAMES = ("left", "right")
SIDES = {"channels": 3, "height": 32, "width": 32}
LABELS = ["cat", "dog", "owl"]
PATIENCE_SECONDS, POLL_SECONDS = 300.0, 0.02
MOST_MB_A_SWAP = 0.1
# A Triton that ends so often is measured no further.
MOST_ENDS = 5
PROGRAM = """
import numpy as np
from torch import nn

def build_model(num_classes, channels, height, width):
    hidden = nn.Linear(channels * height * width, 256)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(256, num_classes))

def preprocess(image, channels, height, width):
    return np.asarray(image.convert("RGB").resize((width, height)), np.float32).transpose(2, 0, 1) / 255
"""


@dataclass
class Swaps:
    """Of each swap: memory of the server alone in MB when the model had gone, and seconds of its parts.

    `answered` is from the order to load to the first answer, `swapped` also has the unload, until the model's process
    had ended. `regions` are what was left in shared memory at the end. Where the server ended by itself it is started
    again, which begins another of the `lives` that memory is looked at in; the promise is broken then.
    """

    lives: list[list[float]] = field(default_factory=lambda: [[]])
    answered: list[float] = field(default_factory=list)
    swapped: list[float] = field(default_factory=list)
    regions: int = 0

    @property
    def ends(self) -> int:
        """How often the server ended by itself."""
        return len(self.lives) - 1

    @property
    def settled_mb(self) -> list[float]:
        """After the first swaps, of the server that lived longest."""
        return max(self.lives, key=len)[WARM_SWAPS:]

    @property
    def mb_a_swap(self) -> float:
        """Growth of that, by a line through all: one swap more or less does not matter. Not a number of too few."""
        settled = self.settled_mb
        return float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 1 else math.nan

    def rows(self) -> Iterator[Row]:
        """RuntimeError when hardly any swap was done."""
        if len(self.swapped) < 2:
            raise RuntimeError(f"Triton ended {self.ends} times in {len(self.swapped)} swaps; nothing was measured")
        settled = self.settled_mb
        yield Row(
            f"memory of Triton's own process (private, dirty) after {len(self.swapped)} swaps of two models",
            f"{settled[-1]:,.1f} MB" if settled else "",
            f"{settled[0]:,.1f} MB after {WARM_SWAPS} swaps" if settled else "",
            f"{self.mb_a_swap:+.3f} MB a swap, {self.regions} regions of shared memory left, ended {self.ends} times",
            f"at most {MOST_MB_A_SWAP:g} MB a swap, no region, no end",
            self.mb_a_swap <= MOST_MB_A_SWAP and self.regions == 0 and self.ends == 0,
        )
        yield Row(
            "a model that is not in memory: from the order to load it to its first answer",
            f"{statistics.median(self.answered):.2f} s",
            "",
            f"{statistics.quantiles(self.answered, n=20)[-1]:.2f} s in 1 of 20",
            "at most 3 s",
            statistics.median(self.answered) <= 3.0,
        )


def measure_swaps(count: int = SWAPS) -> Iterator[Row]:
    """Rows of the section `inference`."""
    announce(f"{count} swaps of two models")
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        swaps = asyncio.run(swap(Path(folder), count))
    yield from swaps.rows()


async def swap(home: Path, count: int) -> Swaps:
    """One model in memory at a time, of two; with a server of its own below `home`."""
    installation = find_installation()
    if installation is None:
        raise RuntimeError("Triton is not installed: run make setup")
    repository = DiskRepository(home)
    for seed, name in enumerate(NAMES):
        await repository.publish(_train(home / "trainings" / name, name, seed))
    server = TritonServer(installation, home)
    loop = ReconcileLoop("triton", server.step, soon_seconds=0.1, later_seconds=0.1)
    supervision = asyncio.create_task(loop.run())
    addresses = address_file(home)
    control = TritonClient(lambda: read_grpc_address(addresses), key=server.key)
    try:
        await _until_live(control)
        return await _swap(server, control, read_grpc_address(addresses) or "", count)
    finally:
        loop.stop()
        await supervision
        await control.close()
        await server.stop()


async def _swap(server: TritonServer, control: TritonClient, address: str, count: int) -> Swaps:
    swaps = Swaps()
    tensor = InferInput("INPUT__0", [1, *SIDES.values()], "FP32")
    tensor.set_data_from_numpy(np.zeros([1, *SIDES.values()], np.float32))
    async with InferenceServerClient(address) as client:
        while len(swaps.swapped) < count:
            name, began = NAMES[len(swaps.swapped) % 2], time.perf_counter()
            try:
                await control.load(name)
                await client.infer(name, [tensor])
                answered = time.perf_counter() - began
                await control.unload(name)
                while server.model_processes():
                    await asyncio.sleep(POLL_SECONDS)
                used_mb = _own_mb(server.pid)
            except (ServerAwayError, InferenceServerException, OSError) as error:
                announce(f"Triton ended: {error}")
                swaps.lives.append([])
                if swaps.ends >= MOST_ENDS:
                    break
                await _until_live(control)
                continue
            swaps.answered.append(answered)
            swaps.swapped.append(time.perf_counter() - began)
            swaps.lives[-1].append(used_mb)
    swaps.regions = len(server.shared_memory())
    return swaps


def _own_mb(pid: int | None) -> float:
    """What it wrote itself: what it shares with others, libraries above all, depends on who else runs."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


async def _until_live(control: TritonClient) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            await control.loaded()
            return
        except ServerAwayError:
            await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError("Triton did not start")


def _train(folder: Path, name: str, seed: int) -> InferenceModel:
    """What a training of a small net would have left; the weights are those it began with."""
    code, checkpoints = folder / "code", folder / "checkpoints"
    code.mkdir(parents=True)
    checkpoints.mkdir()
    (code / "model.py").write_text(PROGRAM)
    (checkpoints / "serving.json").write_text(json.dumps({"labels": LABELS, "framework": "PyTorch", **SIDES}))
    torch.manual_seed(seed)
    program: dict[str, object] = {}
    exec(PROGRAM, program)
    network = program["build_model"](len(LABELS), **SIDES)  # type: ignore[operator]
    torch.save(network.state_dict(), checkpoints / "model_epoch_final.pth")
    version = ModelVersion(1, name, "first", "PyTorch", str(code), str(checkpoints), utc_now(), percentage=100)
    return InferenceModel(f"uid-{name}", name, "bench", name, "", "", "", utc_now(), versions=[version])


if __name__ == "__main__":
    for row in measure_swaps():
        print(json.dumps(row.cells))
