"""The prediction worker against a real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_service.domain.predictions import Sample
from inference_service.storage.specs import INDEX_FILE, RESULT_FILE, PredictionSpec, write_manifest
from inference_service.triton.addresses import write_addresses
from inference_service.worker import answers, predict, result_files, triton_client
from inference_service.worker.errors import AwayError, PredictionError
from inference_service.worker.triton_client import Client, InterruptedCallError, RefusedCallError
from PIL import Image
from triton_fixtures import LABELS, SHAPE, ServedHome, expected

pytestmark = pytest.mark.triton
# Dies on the first pixel that says so, as a process whose memory the kernel takes does.
DEADLY = 255
DEADLY_PROGRAM = """
import os
import numpy as np
import torch
from torch import nn

class Deadly(nn.Sequential):
    def forward(self, pixels):
        if (pixels[:, 0, 0, 0] == 1).any():
            os.kill(os.getpid(), 9)
        if (pixels[:, 0, 0, 0] == 0).any():
            raise RuntimeError("black corner")
        return super().forward(pixels)

def build_model(num_classes, channels, height, width):
    return Deadly(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

def preprocess(image, channels, height, width):
    image = image.convert("L").resize((width, height))
    return np.asarray(image, np.float32)[None] / 255
"""


def write_images(folder: Path, count: int, corners: dict[int, int] | None = None) -> list[Sample]:
    """Random pictures without white and black pixels, but for the corners of some."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(3)
    samples = []
    for index in range(count):
        pixels = generator.integers(1, 254, SHAPE[1:], np.uint8)
        pixels[0, 0] = (corners or {}).get(index, pixels[0, 0])
        Image.fromarray(pixels).save(folder / f"{index:05d}-x.png")
        samples.append(Sample(f"x{index}.png", f"{index:05d}-x.png"))
    return samples


def pixels_of(folder: Path, samples: list[Sample]) -> Any:
    return np.stack([np.asarray(Image.open(folder / each.file), np.float32)[None] / 255 for each in samples])


def spec_for(triton: ServedHome, name: str, folder: Path, samples: list[Sample] | None = None) -> PredictionSpec:
    spec = PredictionSpec(
        model_name=name,
        model_version=1,
        bundle=str(triton.home / "inference" / "repository" / name / "1" / "bundle"),
        address_file=str(triton.address_file),
        input_dir=str(folder / "input"),
        roots=(str(folder.resolve()),),
        manifest=str(folder / "manifest.jsonl"),
        output_dir=str(folder / "output"),
        threshold=0.0,
        max_image_bytes=1 << 20,
    )
    if samples is not None:
        write_manifest(Path(spec.manifest), samples)
    spec.write(folder / "spec.json")
    return spec


def run_worker(spec_file: Path, job: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    job.mkdir()
    environment = {**os.environ, "DLMESH_JOB_ID": "job", "DLMESH_JOB_DIR": str(job), "RANK": "0"}
    program = arguments or ("-m", "inference_service.worker.predict")
    command = [sys.executable, "-P", *program, str(spec_file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def rows_of(spec: PredictionSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(spec.output_dir) / RESULT_FILE).read_text().splitlines()]


def check_rows(rows: list[dict[str, Any]], samples: list[Sample], truth: Any) -> None:
    assert [row["sampleId"] for row in rows] == [each.id for each in samples]
    for row, probabilities in zip(rows, truth, strict=True):
        assert [score["prob"] for score in row["scores"]] == pytest.approx(
            sorted(probabilities, reverse=True), rel=1e-5
        )
        assert row["scores"][0]["label"] == LABELS[int(probabilities.argmax())]


async def test_results_are_those_of_torch_and_bad_images_are_named(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = await triton.serve("worker", seed=5)
    good = write_images(tmp_path / "input", 150)
    (tmp_path / "input" / "bad").write_bytes(b"\x89PNG not an image")
    (tmp_path / "input" / "empty").touch()
    (tmp_path / "input" / "huge").write_bytes(bytes(2 << 20))
    os.mkfifo(tmp_path / "input" / "pipe")
    (tmp_path / "input" / "link").symlink_to("/etc/passwd")
    odd = [Sample(f"{name}.png", name) for name in ("bad", "empty", "huge", "pipe", "link", "missing")]
    spec = spec_for(triton, "worker", tmp_path, odd + good)
    done = await asyncio.to_thread(run_worker, tmp_path / "spec.json", tmp_path / "job")
    assert done.returncode == 0, done.stderr
    rows = rows_of(spec)
    reasons = ("not a picture", "empty", "at most 1048576", "not a file", "outside", "cannot be read")
    assert [sample.id for sample in odd] == [row["sampleId"] for row in rows[:6]]
    assert all(reason in row["error"] for reason, row in zip(reasons, rows[:6], strict=True)), rows[:6]
    check_rows(rows[6:], good, expected(checkpoints, pixels_of(tmp_path / "input", good)))
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert report["result"]["unreadable"] == [sample.id for sample in odd]
    assert (report["result"]["samples"], report["result"]["type"]) == (156, "classification")
    assert report["result"]["best"]["sample"] == "x0.png"
    assert (report["progress"]["done"], report["progress"]["total"]) == (156, 156)
    assert "samples/s" in report["progress"]["phase"]


KILLED_AFTER = """
import os, sys
from inference_service.worker import predict, result_files
predict.FIRST_BATCH_SIZE, predict.MAX_BATCH_SIZE, predict.CHECKPOINT_SECONDS = 7, 7, 0.0
append, count = result_files.ResultFiles.append, 0
def append_or_die(self, rows):
    global count
    rows = list(rows)
    append(self, rows)
    self._results.flush()
    count += len(rows)
    if count >= 42:
        self._results.write(b'{"sampleId": "torn')
        self._results.flush()
        os.kill(os.getpid(), 9)
result_files.ResultFiles.append = append_or_die
predict.main(sys.argv[1])
"""


async def test_a_killed_worker_goes_on_where_it_was(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = await triton.serve("interrupted", seed=6)
    samples = write_images(tmp_path / "input", 150)
    spec = spec_for(triton, "interrupted", tmp_path, samples)
    starts = []
    for attempt in range(3):
        program = ("-c", KILLED_AFTER)
        done = await asyncio.to_thread(run_worker, tmp_path / "spec.json", tmp_path / f"job-{attempt}", *program)
        assert done.returncode == -9, done.stderr
        assert not (tmp_path / "output" / RESULT_FILE).exists()
        starts.append(json.loads((tmp_path / "output" / result_files.POSITION_FILE).read_text())["samples"])
    # Each attempt goes on behind what the one before made durable, and that is most of what it did.
    assert starts[0] >= 28
    assert starts[1] - starts[0] >= 28
    assert starts[2] - starts[1] >= 28
    done = await asyncio.to_thread(run_worker, tmp_path / "spec.json", tmp_path / "last")
    assert done.returncode == 0, done.stderr
    check_rows(rows_of(spec), samples, expected(checkpoints, pixels_of(tmp_path / "input", samples)))
    # What is published is not predicted again, only reported.
    done = await asyncio.to_thread(run_worker, tmp_path / "spec.json", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "again" / "report.json").read_text())["result"]["samples"] == 150


async def test_a_folder_is_predicted_in_order_and_frozen(
    triton: ServedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.worker.manifest.SORTED_NAMES", 3)
    checkpoints = await triton.serve("folder", seed=7)
    samples = write_images(tmp_path / "input", 10)
    names = [f"b/{sample.file}" if index % 2 else sample.file for index, sample in enumerate(samples)]
    (tmp_path / "input" / "b").mkdir()
    for sample, name in zip(samples, names, strict=True):
        (tmp_path / "input" / sample.file).rename(tmp_path / "input" / name)
    (tmp_path / "input" / "notes.txt").write_text("no picture")
    (tmp_path / "input" / ".hidden.png").touch()
    (tmp_path / "input" / "circle").symlink_to(tmp_path / "input")
    (tmp_path / "input" / "out.png").symlink_to("/etc/passwd")
    spec = spec_for(triton, "folder", tmp_path)
    found = [Sample(name, name) for name in sorted(names)]
    told: list[tuple[int, int, str]] = []
    report = await asyncio.to_thread(predict.predict, spec, lambda *progress: told.append(progress))
    assert report["samples"] == 10
    assert told[-1][:2] == (10, 10)
    check_rows(rows_of(spec), found, expected(checkpoints, pixels_of(tmp_path / "input", found)))
    # A later attempt finds the names that the first one wrote.
    (tmp_path / "output" / RESULT_FILE).unlink()
    (tmp_path / "output" / result_files.POSITION_FILE).unlink()
    (tmp_path / "output" / INDEX_FILE).unlink()
    Image.new("L", (6, 4)).save(tmp_path / "input" / "added.png")
    assert (await asyncio.to_thread(predict.predict, spec, lambda *_: None))["samples"] == 10


@pytest.mark.slow
async def test_samples_that_kill_the_model_or_fail_it_are_found(
    triton: ServedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each death costs seconds.
    monkeypatch.setattr(predict, "FIRST_BATCH_SIZE", 3)
    monkeypatch.setattr(predict, "MAX_BATCH_SIZE", 3)
    monkeypatch.setattr(answers, "TRIES", 1)
    monkeypatch.setattr(answers, "TRIES_ALONE", 2)
    checkpoints = await triton.serve("deadly", seed=8, program=DEADLY_PROGRAM)
    samples = write_images(tmp_path / "input", 9, corners={1: DEADLY, 6: 0})
    spec = spec_for(triton, "deadly", tmp_path, samples)
    is_done = threading.Event()

    async def revive() -> None:
        # As the service does.
        client = triton.client()
        while not is_done.is_set():
            if await client.answers("deadly", 1) is False:
                await triton.repository.touch("deadly", [1])
                await client.load("deadly")
            await asyncio.sleep(0.05)
        await client.close()

    reviving = asyncio.create_task(revive())
    try:
        report = await asyncio.to_thread(predict.predict, spec, lambda *_: None)
    finally:
        is_done.set()
    await reviving
    rows = rows_of(spec)
    assert report["unreadable"] == ["x1.png", "x6.png"]
    assert "the process of the model ended on it" in rows[1]["error"]
    assert "black corner" in rows[6]["error"]
    healthy = [index for index in range(9) if index not in (1, 6)]
    truth = expected(checkpoints, pixels_of(tmp_path / "input", [samples[index] for index in healthy]))
    check_rows([rows[index] for index in healthy], [samples[index] for index in healthy], truth)


async def test_a_model_that_fails_at_everything_fails_the_prediction(
    triton: ServedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_BLAMED", 3)
    await triton.serve("failing", program=DEADLY_PROGRAM)
    spec = spec_for(triton, "failing", tmp_path, write_images(tmp_path / "input", 9, dict.fromkeys(range(9), 0)))
    with pytest.raises(PredictionError, match="black corner") as caught:
        await asyncio.to_thread(predict.predict, spec, lambda *_: None)
    assert not isinstance(caught.value, AwayError)
    assert not (tmp_path / "output" / RESULT_FILE).exists()


async def test_it_waits_for_a_triton_that_is_not_there_yet(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = await triton.serve("late")
    samples = write_images(tmp_path / "input", 3)
    spec = replace(spec_for(triton, "late", tmp_path, samples), address_file=str(tmp_path / "triton.json"))
    write_addresses(Path(spec.address_file), {"grpc": "127.0.0.1:1"})
    asked = asyncio.create_task(asyncio.to_thread(predict.predict, spec, lambda *_: None))
    done, _ = await asyncio.wait([asked], timeout=0.5)
    assert not done
    write_addresses(Path(spec.address_file), json.loads(triton.address_file.read_text()))
    await asked
    check_rows(rows_of(spec), samples, expected(checkpoints, pixels_of(tmp_path / "input", samples)))


async def test_it_gives_up_with_words(triton: ServedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_client, "PATIENCE_SECONDS", 0.1)
    await triton.serve("refusing")
    client = Client(triton.address_file, "refusing", 1)
    with pytest.raises(RefusedCallError, match="shape"):
        await asyncio.to_thread(client.infer, {"INPUT__0": np.zeros((1, 9, 9, 9), np.float32)}, 60.0)
    with pytest.raises(RefusedCallError, match="OTHER"):
        await asyncio.to_thread(client.infer, {"OTHER": np.zeros((1, *SHAPE), np.float32)}, 60.0)
    client.close()
    with pytest.raises(InterruptedCallError, match="given up"):
        await asyncio.to_thread(client.infer, {"INPUT__0": np.zeros((1, *SHAPE), np.float32)}, 60.0)
    samples = write_images(tmp_path / "input", 3)
    for name, version in (("unknown", 1), ("refusing", 7)):
        spec = spec_for(triton, "refusing", tmp_path, samples)
        with pytest.raises(AwayError, match="did not answer"):
            spec = replace(spec, model_name=name, model_version=version)
            await asyncio.to_thread(predict.predict, spec, lambda *_: None)


def test_the_index_names_every_thousandth_line(tmp_path: Path) -> None:
    files = result_files.ResultFiles(tmp_path)
    for start in range(0, 2500, 50):
        files.append({"sampleId": f"s{index}", "file": "f", "scores": []} for index in range(start, start + 50))
    files.checkpoint()
    # Behind what is durable: another attempt cuts it off.
    files.append([{"sampleId": "lost", "file": "f", "scores": []}])
    files.close()
    files = result_files.ResultFiles(tmp_path)
    assert files.position.lines == 2500
    files.publish()
    content = (tmp_path / RESULT_FILE).read_bytes()
    offsets = struct.unpack("<3Q", (tmp_path / INDEX_FILE).read_bytes())
    assert [json.loads(content[offset:].split(b"\n")[0])["sampleId"] for offset in offsets] == ["s0", "s1000", "s2000"]
    assert content.count(b"\n") == 2500
