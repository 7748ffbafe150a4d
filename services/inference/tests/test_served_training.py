"""What a training says of its model at its end is what validation, batch prediction and requests find."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.registry import importer_for
from datasets_service.storage.files import DiskSources
from datasets_service.worker.import_dataset import import_dataset
from dlmesh_sdk import served
from dlmesh_sdk.record_datasets import open_records
from PIL import Image
from sklearn.datasets import load_digits
from template_bundles import BUILTIN, ask, ask_items, validated
from training_service.domain.specs import TrainingSpec
from triton_fixtures import ServedHome, make_model

TEMPLATE = "pytorch-image-classification"
pytestmark = [pytest.mark.triton, pytest.mark.slow]


def imported_digits(folder: Path) -> Path:
    """600 scans, 8x8, as the datasets service imports them; a third of them is the test split."""
    digits = load_digits()
    for number in range(600):
        file = folder / "images" / str(digits.target[number]) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype("uint8")).save(file)
    fields: dict[str, Any] = {"test_percentage": 33, "width": 8, "height": 8, "color_mode": "Gray"}
    kind = SourceType.IMAGES_FOR_CLASSIFICATION
    request = DatasetRequest("data", str(kind), str(Backend.LMDB), "local", train_path=str(folder / "images"), **fields)
    options = importer_for(kind).check(request, DiskSources((folder,)))
    places = {"staging": str(folder / "staging"), "target": str(folder / "dataset")}
    (folder / "staging").mkdir()
    spec = ImportSpec("dataset", "data", kind, Backend.LMDB, options, data_roots=(str(folder),), **places)
    import_dataset(spec, lambda done, total: None)
    return folder / "dataset"


def train(folder: Path, dataset: Path) -> dict[str, float]:
    """Two epochs by the training's worker program; what it reports of the test data at its end."""
    settings = json.loads((BUILTIN / TEMPLATE / "template.json").read_text())
    TrainingSpec(
        code=str(BUILTIN / TEMPLATE),
        train_dir=str(folder / "checkpoints"),
        weights="",
        data={split: str(dataset / split) for split in ("train", "test")},
        parameters={"batch_size": 64, "hyperparameter": {**settings["hyperparameter"], "epoch": 2}},
    ).write(folder / "spec.json")
    command = [sys.executable, "-m", "training_service.worker.run_training", str(folder / "spec.json")]
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: float(value) for name, value in re.findall(r"tag (test_\w+), simple_value (\S+)", done.stdout)}


async def test_all_agree_with_the_training(triton: ServedHome, tmp_path: Path) -> None:
    dataset = await asyncio.to_thread(imported_digits, tmp_path)
    reported = await asyncio.to_thread(train, tmp_path, dataset)
    checkpoints = tmp_path / "checkpoints"
    await triton.repository.publish(make_model("trained", BUILTIN / TEMPLATE, checkpoints))
    client = triton.client()
    await client.load("trained")
    await client.close()
    model = served.load(triton.home / "inference" / "repository" / "trained" / "1" / "bundle")

    pictures: list[bytes] = []

    def kept(image: Image.Image) -> Any:
        file = io.BytesIO()
        image.save(file, "PNG")
        pictures.append(file.getvalue())
        return model.program.preprocess(image, **model.shape)  # type: ignore[attr-defined]

    # As the test at the end of a training reads them.
    records = open_records(dataset / "test", kept)
    inputs, labels = zip(*(records[number] for number in range(len(records))), strict=True)
    encoded = model.encode([model.item(picture, name) for picture, name in zip(pictures, records.names(), strict=True)])
    np.testing.assert_array_equal(encoded.inputs["INPUT__0"], np.stack([each.numpy() for each in inputs]))

    parts = [slice(start, start + 60) for start in range(0, len(pictures), 60)]
    answers = [
        await asyncio.to_thread(ask, triton, "trained", {"INPUT__0": encoded.inputs["INPUT__0"][part]})
        for part in parts
    ]
    probabilities = np.concatenate([answer["OUTPUT__0"] for answer in answers])
    right = probabilities[np.arange(len(labels)), labels]
    assert reported["test_loss"] == pytest.approx(float(-np.log(right).mean()), rel=1e-5, abs=1e-6)
    assert reported["test_accuracy"] == pytest.approx(float((probabilities.argmax(1) == labels).mean()), rel=1e-5)
    assert reported["test_accuracy"] > 0.5

    results = model.results(encoded, {"OUTPUT__0": probabilities})
    online = [each for part in parts for each in await asyncio.to_thread(ask_items, triton, "trained", pictures[part])]
    document = await asyncio.to_thread(
        validated, BUILTIN / TEMPLATE, checkpoints, dataset / "test", tmp_path / "output"
    )
    checked = {(row["sampleId"], row["label"]): row["prob"] for row in document["result"]}
    assert len(checked) == 5 * len(pictures)
    for result, other in zip(results, online, strict=True):
        scores = {score["label"]: score["prob"] for score in result["scores"]}
        assert {score["label"]: score["prob"] for score in other["scores"]} == pytest.approx(scores, abs=1e-5)
        found = {label: prob for label, prob in scores.items() if (result["sampleId"], label) in checked}
        assert len(found) == 5
        for label, prob in found.items():
            assert checked[result["sampleId"], label] == pytest.approx(prob, abs=1e-5)
