"""A real Triton answers for programs, Keras models and Caffe nets what they answer without it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as tritongrpc
from inference_service.triton.server import read_grpc_address
from inference_service.usecases.ports import LoadRefusedError
from PIL import Image
from triton_fixtures import ServedHome, make_model
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.triton, pytest.mark.slow]

LABELS = ["ant", "bee", "cow"]
NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""
PROGRAM = """
import argparse, os
import inference_helper, numpy, torch
from PIL import Image
from net import make
parser = argparse.ArgumentParser()
for name in ("model", "input_dir", "output_dir", "output_file", "prob_thresh", "validate", "label_file"):
    parser.add_argument("--" + name, default="")
args, _ = parser.parse_known_args()
net = make()
net.load_state_dict(torch.load(os.path.join(args.model, "model_epoch_final.pth")))
names = sorted(os.listdir(args.input_dir))
pixels = [numpy.asarray(Image.open(os.path.join(args.input_dir, name)).convert("L"), "f") / 255 for name in names]
assert min(part.min() for part in pixels) > 0.1, "what is black cannot be classified"
with torch.no_grad():
    rows = torch.softmax(net(torch.from_numpy(numpy.stack(pixels))), 1)
file = os.path.join(args.output_dir, args.output_file)
inference_helper.writeClassificationResult(file, names, rows, args.label_file, prob_thresh=args.prob_thresh)
"""


def pictures(count: int, *, channels: int = 1, side: int = 8) -> list[Any]:
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return list(np.random.default_rng(5).integers(30, 255, shape, np.uint8))


def encoded(pixels: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def ask(address_file: Path, name: str, items: Sequence[bytes]) -> list[dict[str, Any]]:
    """The results of items that are sent as one request."""
    with tritongrpc.InferenceServerClient(read_grpc_address(address_file)) as client:
        tensor = tritongrpc.InferInput("ITEM", [len(items), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(items, np.object_).reshape(-1, 1))
        answer = client.infer(name, [tensor], client_timeout=300).as_numpy("RESULT")
    return [json.loads(text) for text in answer.ravel()]


def probabilities(results: Sequence[dict[str, Any]], labels: Sequence[str]) -> Any:
    """[n, labels], in the order of the labels."""
    rows = [{score["label"]: score["prob"] for score in result["scores"]} for result in results]
    return np.array([[row[label] for label in labels] for row in rows])


async def serve(triton: ServedHome, name: str, framework: str, code: Path, checkpoints: Path) -> None:
    """Export, load and probe."""
    await triton.repository.publish(make_model(name, code, checkpoints, framework=framework))
    client = triton.client()
    try:
        await client.load(name)
        await client.probe(name, 1)
    finally:
        await client.close()


def write_program(home: Path, name: str, program: str) -> tuple[Path, Path]:
    run, data = home / "trainings" / name, home / "datasets" / name
    code, checkpoints = run / "code", run / "checkpoints"
    for folder in (code, checkpoints, data / "train"):
        folder.mkdir(parents=True)
    (code / "inference.py").write_text(program)
    (code / "net.py").write_text(NET)
    (data / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (run / "parameters-0.json").write_text(json.dumps({"data": {"train": str(data / "train")}}))
    write_record(data / "train")
    return code, checkpoints


def write_record(folder: Path) -> None:
    import lmdb
    from recordkit.datum import encode_datum

    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", encode_datum(np.full((1, 8, 8), 200, np.uint8), 0))


async def test_a_program_with_only_an_inference_py(triton: ServedHome) -> None:
    code, checkpoints = write_program(triton.home, "original", PROGRAM)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(3)
    net = scope["make"]()
    torch.save(net.state_dict(), checkpoints / "model_epoch_final.pth")
    await serve(triton, "original", "PyTorch", code, checkpoints)
    seen = pictures(6)
    with torch.no_grad():
        expected = torch.softmax(net(torch.from_numpy(np.stack(seen).astype(np.float32) / 255)), 1).numpy()
    address, items = triton.address_file, [encoded(pixels) for pixels in seen]
    results = await asyncio.to_thread(ask, address, "original", items)
    np.testing.assert_allclose(probabilities(results, LABELS), expected, rtol=1e-5)
    # Requests that Triton may batch, one of which the program cannot bear.
    black = encoded(np.zeros((8, 8), np.uint8))
    asked = [asyncio.to_thread(ask, address, "original", [item]) for item in [items[0], black, *items[1:]]]
    first, refusal, *rest = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(refusal, InferenceServerException)
    assert "what is black cannot be classified" in str(refusal)
    answers = [answer for answer in (first, *rest) if isinstance(answer, list)]
    np.testing.assert_allclose(probabilities([answer[0] for answer in answers], LABELS), expected, rtol=1e-5)


async def test_a_program_that_cannot_answer_its_own_dataset_is_not_ready(triton: ServedHome) -> None:
    code, checkpoints = write_program(triton.home, "broken", "raise ValueError('it was never tried')")
    (checkpoints / "model_epoch_final.pth").write_text("weights")
    with pytest.raises(LoadRefusedError, match="it was never tried"):
        await serve(triton, "broken", "PyTorch", code, checkpoints)
