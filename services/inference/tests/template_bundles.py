"""Trainings of built-in PyTorch templates that never ran: programs, weights by a seed, input files, and questions."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models_service
import numpy as np
import torch
import tritonclient.grpc as tritongrpc
from dlmesh_sdk import served
from dlmesh_sdk.served.program import load_program
from inference_service.triton.addresses import read_grpc_address
from PIL import Image
from triton_fixtures import ServedHome
from tritonclient.utils import np_to_triton_dtype

BUILTIN = Path(models_service.__file__).parent / "builtin"
LABELS = ["ant", "bee", "cat"]
_TARGET = {"name": "kind", "is_number": False, "labels": LABELS, "mean": 0.0, "deviation": 1.0}
_COLUMNS = {"numbers": [["size", 10.0, 4.0], ["age", 3.0, 1.0]], "texts": [["colour", ["red", "blue"]]]}
_WORDS = {"column": "text", "length": 16, "characters": "abcdefgh", "words": ["ant", "bee", "sees"]}
_SHAPE = {"channels": 3, "height": 20, "width": 24}
SERVING: dict[str, dict[str, Any]] = {
    "pytorch-image-classification": {"task": "classification", "labels": LABELS, **_SHAPE},
    "pytorch-resnet-image-classification": {"task": "classification", "labels": LABELS, **_SHAPE},
    "pytorch-image-to-vector": {"task": "vector", "length": 4, **_SHAPE},
    "pytorch-image-comparison": {"task": "comparison", "length": 8, "similar_below": 0.7, **_SHAPE},
    "pytorch-object-detection": {"task": "detection", "labels": LABELS, "channels": 3, "height": 96, "width": 96},
    "pytorch-tabular": {"task": "tabular", "labels": LABELS, "encoding": {"target": _TARGET, **_COLUMNS}},
    "pytorch-text-classification": {"task": "text", "labels": LABELS, "encoding": {"target": _TARGET, **_WORDS}},
}
REGRESSION = {
    "task": "tabular",
    "labels": [],
    "encoding": {"target": {**_TARGET, "is_number": True, "labels": [], "mean": 1e6, "deviation": 250.0}, **_COLUMNS},
}


def write_bundle(template: str, checkpoints: Path, serving: dict[str, Any] | None = None) -> Path:
    """Write the checkpoints; returns the template's code folder."""
    facts = serving or SERVING[template]
    checkpoints.mkdir(parents=True)
    (checkpoints / "serving.json").write_text(json.dumps({**facts, "framework": "PyTorch"}))
    torch.manual_seed(4)
    module = served.make(facts, load_program(BUILTIN / template)).build_model()
    if facts["task"] == "detection":
        # As it begins, no cell claims anything.
        torch.nn.init.normal_(module.output.weight, std=1.0)
        torch.nn.init.zeros_(module.output.bias)
    torch.save(module.state_dict(), checkpoints / "model_epoch_final.pth")
    return BUILTIN / template


def write_pictures(folder: Path) -> list[Path]:
    """Of several sizes, modes and formats."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(8)
    colours = dice.integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(colours).save(folder / "a.png")
    Image.fromarray(colours[:20, :24]).save(folder / "b.jpg", quality=90)
    Image.fromarray(colours).convert("P").save(folder / "c.gif")
    Image.fromarray(dice.integers(0, 65535, (50, 20)).astype(np.uint16)).save(folder / "d.png")
    Image.fromarray(dice.integers(0, 255, (12, 90, 4), np.uint8)).save(folder / "e.webp", lossless=True)
    return sorted(folder.iterdir())


def write_table(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, cells empty and unknown among them."""
    rows: list[dict[str, Any]] = [
        {"size": 11.5, "age": 2, "colour": "red", "text": "ant sees bee"},
        {"size": "", "age": 7, "colour": "green", "text": "a bee, and a very long line of words that ends somewhere"},
        {"size": -3, "age": 0, "colour": "", "text": "Ünknown 王"},
    ]
    with file.open("w", newline="", encoding="utf-8") as content:
        writer = csv.DictWriter(content, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def validated(code: Path, checkpoints: Path, source: Path, output: Path) -> dict[str, Any]:
    """The result file of the template's inference.py, run as a validation runs it."""
    output.mkdir()
    command = [sys.executable, str(code / "inference.py"), "--model", str(checkpoints), "--input_dir", str(source)]
    command += ["--output_dir", str(output), "--output_file", "result.json", "--prob_thresh", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def ask(
    room: ServedHome, name: str, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] = ()
) -> dict[str, Any]:
    """Outputs of one request, all where none are named."""
    with tritongrpc.InferenceServerClient(read_grpc_address(room.address_file)) as client:
        tensors = []
        for tensor, array in inputs.items():
            tensors.append(tritongrpc.InferInput(tensor, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        answer = client.infer(name, tensors, outputs=[tritongrpc.InferRequestedOutput(each) for each in outputs])
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def ask_items(room: ServedHome, name: str, items: Sequence[bytes]) -> list[dict[str, Any]]:
    rows = np.array([[item] for item in items], np.object_)
    return [json.loads(result) for result in ask(room, name, {"ITEM": rows})["RESULT"].ravel()]
