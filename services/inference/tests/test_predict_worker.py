"""The prediction worker against a real Triton, and its parts alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_service.domain.predictions import Sample
from inference_service.domain.specs import PredictionSpec, read_results
from inference_service.triton.server import write_addresses
from inference_service.worker import predict as worker
from PIL import Image
from triton_fixtures import LABELS, SHAPE, ServedHome, expected


def write_images(folder: Path, count: int) -> list[Sample]:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(3)
    samples = []
    for index in range(count):
        pixels = generator.integers(0, 255, SHAPE[1:], np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}-x.png")
        samples.append(Sample(f"x{index}.png", f"{index:05d}-x.png"))
    return samples


def pixels_of(folder: Path, samples: list[Sample]) -> Any:
    return np.stack([np.asarray(Image.open(folder / each.file), np.float32)[None] / 255 for each in samples])


def spec_for(triton: ServedHome, name: str, folder: Path, samples: list[Sample], threshold: float = 0.0) -> Any:
    return PredictionSpec(
        model_name=name,
        bundle=str(triton.home / "inference" / "repository" / name / "1" / "bundle"),
        address_file=str(triton.address_file),
        input_dir=str(folder / "input"),
        output_file=str(folder / "output" / "results.json"),
        threshold=threshold,
        samples=tuple(samples),
    )


def run_worker(spec_file: Path, job: Path) -> subprocess.CompletedProcess[str]:
    job.mkdir()
    environment = {**os.environ, "DLMESH_JOB_ID": "job", "DLMESH_JOB_DIR": str(job), "RANK": "0"}
    command = [sys.executable, "-P", "-m", "inference_service.worker.predict", str(spec_file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.triton
async def test_results_are_those_of_torch_and_bad_images_are_named(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = await triton.serve("worker", seed=5)
    good = write_images(tmp_path / "input", 70)
    (tmp_path / "input" / "bad").write_bytes(b"\x89PNG not an image")
    samples = [Sample("bad.png", "bad"), *good]
    spec = spec_for(triton, "worker", tmp_path, samples)
    spec.write(tmp_path / "spec.json")
    done = await asyncio.to_thread(run_worker, tmp_path / "spec.json", tmp_path / "job")
    assert done.returncode == 0, done.stderr
    results = read_results(Path(spec.output_file))
    assert [each.sample_id for each in results] == [each.id for each in samples]
    assert results[0].error
    assert results[0].scores == ()
    truth = expected(checkpoints, pixels_of(tmp_path / "input", good))
    for result, row in zip(results[1:], truth, strict=True):
        assert [score.probability for score in result.scores] == pytest.approx(sorted(row, reverse=True), rel=1e-5)
        assert result.scores[0].label == LABELS[int(row.argmax())]
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert report["result"]["unreadable"] == ["bad.png"]
    assert report["result"]["best"]["sample"] == "x0.png"
    assert report["progress"] == {"done": 71.0, "total": 71.0, "phase": "predicting"}


@pytest.mark.triton
async def test_it_waits_for_a_triton_that_is_not_there_yet(triton: ServedHome, tmp_path: Path) -> None:
    await triton.serve("late")
    address_file = tmp_path / "triton.json"
    write_addresses(address_file, {"grpc": "127.0.0.1:1"})
    client = worker.Client(address_file, "late")
    asked = asyncio.create_task(asyncio.to_thread(client.infer, np.zeros((1, *SHAPE), np.float32)))
    done, _ = await asyncio.wait([asked], timeout=0.5)
    assert not done
    write_addresses(address_file, json.loads(triton.address_file.read_text()))
    assert (await asked).sum() == pytest.approx(1.0)
    client.close()


@pytest.mark.triton
async def test_it_gives_up_with_words(triton: ServedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_SECONDS", 0.1)
    await triton.serve("refusing")
    client = worker.Client(triton.address_file, "refusing")
    with pytest.raises(worker.PredictionError, match="refuses"):
        await asyncio.to_thread(client.infer, np.zeros((1, 9, 9, 9), np.float32))
    client.close()
    client = worker.Client(triton.address_file, "unknown")
    with pytest.raises(worker.PredictionError, match="did not answer"):
        await asyncio.to_thread(client.infer, np.zeros((1, *SHAPE), np.float32))
    client.close()


def test_scores_reach_the_threshold_and_are_sorted() -> None:
    scores = worker.scores_of([0.2, 0.5, 0.3], LABELS, 0.3)
    assert [(score.index, score.label) for score in scores] == [(1, "dog"), (2, "owl")]
    assert worker.scores_of([0.2, 0.5, 0.3], LABELS, 0.9) == ()


def test_the_summary_skips_what_has_no_scores() -> None:
    result = worker.SampleResult("a", "/a", (), "bad")
    assert worker.summary([result]) == {"samples": 1, "best": None, "unreadable": ["a"]}
