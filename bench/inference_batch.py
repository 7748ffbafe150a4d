"""Batch prediction by Triton beside an ideal loop in one process, over the same pictures: `measure_batches`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "services" / "models" / "models_service" / "builtin"
NETS = {"small net": "pytorch-image-classification", "ResNet": "pytorch-resnet-image-classification"}
SIDE, CHANNELS, LABELS = 224, 3, [str(digit) for digit in range(10)]
# As large as what the model's process passes at once: larger ones would hold the ideal loop back on CPUs.
BATCH_SIZE = 8
READY_SECONDS, LOAD_SECONDS, RUN_SECONDS = 60.0, 120.0, 1200.0


@dataclass(frozen=True)
class Batches:
    """Pictures per second of each turn, the ideal loop's and ours side by side."""

    net: str
    ideal: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """The median of the turns' ratios."""
        return statistics.median(ours / ideal for ours, ideal in zip(self.ours, self.ideal, strict=True))


def measure_batches(counts: Mapping[str, int], turns: int) -> list[Batches]:
    """For each net of NETS, over `counts[net]` pictures; turns alternate."""
    found = []
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-") as folder:
        home = Path(folder)
        for net, count in counts.items():
            name = net.replace(" ", "-")
            pictures = home / "data" / name
            write_pictures(pictures, count)
            publish(home, name, NETS[net])
            with serving(home, name):
                batches = Batches(net, [], [])
                for turn in range(turns):
                    batches.ideal.append(count / _run("ideal", home, name, pictures, turn))
                    batches.ours.append(count / _run("ours", home, name, pictures, turn))
            found.append(batches)
    return found


def write_pictures(folder: Path, count: int) -> None:
    """Scans of digits, enlarged and a little moved, as colour JPEGs."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    scans, generator = load_digits().images, np.random.default_rng(11)
    for index in range(count):
        scan = np.roll(scans[index % len(scans)], generator.integers(-1, 2, 2), (0, 1))
        picture = Image.fromarray((scan * (255 / 16)).astype("uint8")).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture.convert("RGB"), np.int16) + generator.integers(-8, 9, (SIDE, SIDE, CHANNELS))
        Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(folder / f"{index:06d}.jpg", quality=90)


def publish(home: Path, name: str, template: str) -> None:
    """An entry of the model repository with weights that were never trained: what it costs is the same."""
    import torch
    from dlmesh_sdk import served
    from dlmesh_sdk.served.program import load_program
    from inference_service.domain.models import InferenceModel, ModelVersion
    from inference_service.storage.repository import DiskRepository
    from servicekit.times import utc_now

    training = home / "trainings" / name
    checkpoints = training / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copytree(TEMPLATES / template, training / "code")
    serving = {"labels": LABELS, "channels": CHANNELS, "height": SIDE, "width": SIDE, "framework": "PyTorch"}
    (checkpoints / "serving.json").write_text(json.dumps(serving))
    torch.manual_seed(3)
    torch.save(
        served.make(serving, load_program(training / "code")).build_model().state_dict(),
        checkpoints / "model_epoch_final.pth",
    )
    version = ModelVersion(1, name, "bench", "PyTorch", str(training / "code"), str(checkpoints), utc_now())
    model = InferenceModel(name, name, "bench", name, template, "digits", "local", utc_now(), versions=[version])
    asyncio.run(DiskRepository(home).publish(model))


@contextlib.contextmanager
def serving(home: Path, name: str) -> Iterator[None]:
    """A Triton of its own with the model loaded."""
    from inference_service.clients.triton import TritonClient
    from inference_service.triton.addresses import read_grpc_address
    from inference_service.triton.installation import Ports, find_installation
    from inference_service.triton.server import PORTS, SHARED_MEMORY, is_free, publish_addresses

    installation = find_installation()
    if installation is None:
        raise SystemExit("Triton is not installed: run make setup")
    ports = Ports(*itertools.islice((port for port in random.sample(PORTS, 100) if is_free(port)), 3))
    address_file, prefix = home / "inference" / "triton.json", f"dlmesh_bench_{home.name}_"
    publish_addresses(address_file, ports)
    command = installation.command(home / "inference" / "repository", ports, prefix)
    process = subprocess.Popen(
        command, env=installation.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    async def load() -> None:
        client = TritonClient(lambda: read_grpc_address(address_file))
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                await client.load(name)
                break
            except Exception:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                await asyncio.sleep(0.1)
        await client.close()

    try:
        asyncio.run(load())
        yield
    finally:
        process.terminate()
        process.wait(30)
        for region in SHARED_MEMORY.glob(f"{prefix}*"):
            region.unlink()


def ideal(bundle: Path, pictures: Path, results: Path) -> float:
    """What somebody would write who has the model and the pictures in one process; seconds."""
    import torch
    from dlmesh_sdk.served.program import load_program
    from PIL import Image

    program = load_program(bundle)
    model = program.build_model(len(LABELS), CHANNELS, SIDE, SIDE)
    model.load_state_dict(torch.load(bundle / "model_epoch_final.pth", weights_only=True))
    model.eval()
    torch.set_num_threads(2)
    begun = time.monotonic()
    files = sorted(pictures.iterdir())
    with results.open("w") as stream, torch.inference_mode():
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            pixels = []
            for file in batch:
                with Image.open(file) as image:
                    pixels.append(program.preprocess(image, CHANNELS, SIDE, SIDE))
            probabilities = model(torch.from_numpy(np.stack(pixels))).softmax(1)
            for file, row in zip(batch, probabilities.tolist(), strict=True):
                stream.write(json.dumps([file.name, dict(zip(LABELS, row, strict=True))]) + "\n")
    return time.monotonic() - begun


def ours(home: Path, name: str, pictures: Path, folder: Path) -> float:
    """The worker of a prediction, its folder given; seconds."""
    # As a job has it, which is forked from a process that has.
    import torch  # noqa: F401
    from inference_service.storage.specs import PredictionSpec
    from inference_service.worker.predict import predict

    bundle = home / "inference" / "repository" / name / "1" / "bundle"
    spec = PredictionSpec(
        model_name=name,
        model_version=1,
        bundle=str(bundle),
        address_file=str(home / "inference" / "triton.json"),
        input_dir=str(pictures),
        roots=(str((home / "data").resolve()),),
        manifest=str(folder / "manifest.jsonl"),
        output_dir=str(folder / "output"),
        threshold=0.0,
        max_image_bytes=1 << 30,
    )
    begun = time.monotonic()
    report = predict(spec, lambda *_: None)
    seconds = time.monotonic() - begun
    if report["unreadable_count"]:
        raise SystemExit(f"not all pictures were predicted: {report}")
    return seconds


def _run(way: str, home: Path, name: str, pictures: Path, turn: int) -> float:
    """In a process of its own, as a job is; imports are not counted."""
    folder = home / f"{name}-{way}-{turn}"
    folder.mkdir()
    command = [sys.executable, "-P", str(Path(__file__)), way, str(home), name, str(pictures), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=True)
    return float(done.stdout.split()[-1])


def _main(way: str, home: Path, name: str, pictures: Path, folder: Path) -> None:
    if way == "ours":
        print(ours(home, name, pictures, folder))
    else:
        print(ideal(home / "inference" / "repository" / name / "1" / "bundle", pictures, folder / "results.jsonl"))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        for each in measure_batches({"small net": 3000, "ResNet": 1000}, 3):
            print(f"{each.net}: ideal {each.ideal}, ours {each.ours} pictures/s, ratio {each.ratio:.2f}")
