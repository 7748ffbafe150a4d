"""A real Triton answers for programs, Keras models and Caffe nets what they answer without it."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import caffe_nets
import caffe_nets.serving
import numpy as np
import pytest
import torch
import tritonclient.grpc as tritongrpc
from inference_service.domain.predictions import Sample
from inference_service.storage.specs import RESULT_FILE, PredictionSpec, write_manifest
from inference_service.triton.addresses import read_grpc_address
from inference_service.usecases.ports import LoadRefusedError
from inference_service.worker.predict import predict
from PIL import Image
from template_bundles import ask as ask_tensors
from triton_fixtures import ServedHome, make_model, write_training
from tritonclient.utils import InferenceServerException
from workerkit.confinement.hiding import supported_abi

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


def write_pictures(folder: Path, seen: Sequence[Any]) -> None:
    folder.mkdir()
    for number, pixels in enumerate(seen):
        (folder / f"{number}.png").write_bytes(encoded(pixels))


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


def predicted(triton: ServedHome, name: str, folder: Path) -> list[dict[str, Any]]:
    """What a batch prediction of the files in `folder/input` writes."""
    names = sorted(file.name for file in (folder / "input").iterdir())
    write_manifest(folder / "manifest.jsonl", [Sample(name, name) for name in names])
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
    predict(spec, lambda *_: None)
    return [json.loads(line) for line in (folder / "output" / RESULT_FILE).read_text().splitlines()]


async def test_a_program_with_only_an_inference_py(triton: ServedHome, tmp_path: Path) -> None:
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
    # A batch prediction, with pictures that it cannot bear and one that is none.
    write_pictures(tmp_path / "input", [*seen, np.zeros((8, 8), np.uint8)])
    (tmp_path / "input" / "9.png").write_bytes(b"no picture")
    rows = await asyncio.to_thread(predicted, triton, "original", tmp_path)
    assert [row["sampleId"] for row in rows] == [*(f"{number}.png" for number in range(7)), "9.png"]
    np.testing.assert_allclose(probabilities(rows[:6], LABELS), expected, rtol=1e-5)
    assert "what is black cannot be classified" in rows[6]["error"]
    assert "error" in rows[7]


async def test_a_program_that_cannot_answer_its_own_dataset_is_not_ready(triton: ServedHome) -> None:
    code, checkpoints = write_program(triton.home, "broken", "raise ValueError('it was never tried')")
    (checkpoints / "model_epoch_final.pth").write_text("weights")
    with pytest.raises(LoadRefusedError, match="it was never tried"):
        await serve(triton, "broken", "PyTorch", code, checkpoints)


BUILTIN = Path(__file__).parents[2] / "models" / "models_service" / "builtin"
# In a process of its own: weights of the template's net, and what its inference.py makes of the pictures with them.
KERAS = """
import runpy, sys
import keras
from model import build_model
folder, input_dir = sys.argv[1:]
keras.utils.set_random_seed(11)
model = build_model(3, channels=3, height=16, width=12)
model.save(f"{folder}/model_epoch_final.keras")
options = ["--model", folder, "--input_dir", input_dir, "--output_dir", input_dir, "--output_file", "r.json"]
sys.argv = ["inference.py", *options]
runpy.run_path("inference.py", run_name="__main__")
"""


def rows_of(file: Path, labels: Sequence[str]) -> Any:
    """What an inference program wrote: [n, labels]."""
    rows: dict[str, dict[str, float]] = {}
    for entry in json.loads(file.read_text())["result"]:
        rows.setdefault(entry["sampleId"], {})[entry["label"]] = entry["prob"]
    return np.array([[rows[name][label] for label in labels] for name in sorted(rows)])


def infer(address_file: Path, name: str, inputs: Any) -> Any:
    with tritongrpc.InferenceServerClient(read_grpc_address(address_file)) as client:
        tensor = tritongrpc.InferInput("INPUT__0", list(inputs.shape), "FP32")
        tensor.set_data_from_numpy(inputs)
        wanted = [tritongrpc.InferRequestedOutput("OUTPUT__0")]
        return client.infer(name, [tensor], outputs=wanted, client_timeout=300).as_numpy("OUTPUT__0")


async def test_a_keras_model(triton: ServedHome, tmp_path: Path) -> None:
    run = triton.home / "trainings" / "keras"
    code, checkpoints = run / "code", run / "checkpoints"
    shutil.copytree(BUILTIN / "tensorflow-image-classification", code)
    checkpoints.mkdir()
    sides = {"channels": 3, "height": 16, "width": 12}
    (checkpoints / "serving.json").write_text(json.dumps({"labels": LABELS, "framework": "TensorFlow", **sides}))
    seen = pictures(5, channels=3, side=20)
    write_pictures(tmp_path / "in", seen)
    command = [sys.executable, "-c", KERAS, str(checkpoints), str(tmp_path / "in")]
    await asyncio.to_thread(subprocess.run, command, cwd=code, check=True, timeout=600, capture_output=True)
    expected = rows_of(tmp_path / "in" / "r.json", LABELS)
    await serve(triton, "keras", "TensorFlow", code, checkpoints)
    items = [encoded(pixels) for pixels in seen]
    results = await asyncio.to_thread(ask, triton.address_file, "keras", [*items, b"no picture"])
    assert set(results.pop()) == {"error"}
    np.testing.assert_allclose(probabilities(results, LABELS), expected, rtol=1e-5, atol=1e-6)
    small = [Image.fromarray(pixels).resize((12, 16), Image.Resampling.BILINEAR) for pixels in seen]
    inputs = [np.asarray(picture, np.float32)[None] / 127.5 - 1 for picture in small]
    asked: list[Any] = [asyncio.to_thread(infer, triton.address_file, "keras", each) for each in inputs]
    asked += [asyncio.to_thread(ask, triton.address_file, "keras", [item]) for item in items]
    answers = await asyncio.gather(*asked)
    np.testing.assert_allclose(np.concatenate(answers[: len(seen)]), expected, rtol=1e-5, atol=1e-6)
    one_by_one = probabilities([answer[0] for answer in answers[len(seen) :]], LABELS)
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-5, atol=1e-6)
    both = {"INPUT__0": inputs[0], "ITEM": np.array([[items[0]]], np.object_)}
    with pytest.raises(InferenceServerException, match="needed are ITEM alone, or INPUT__0") as caught:
        await asyncio.to_thread(ask_tensors, triton, "keras", both)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("brings_program", [True, False])
async def test_a_caffe_net(triton: ServedHome, tmp_path: Path, brings_program: bool) -> None:
    name = f"caffe-{brings_program}"
    run = triton.home / "trainings" / name
    code, checkpoints = run / "code", run / "checkpoints"
    shutil.copytree(BUILTIN / "caffe-cifar", code)
    if not brings_program:
        (code / "model.py").unlink()
    checkpoints.mkdir()
    shape = {"channels": 3, "height": 32, "width": 32}
    known = {"labels": LABELS, "framework": "Caffe", **shape, "picture_height": 32, "picture_width": 32}
    (checkpoints / "serving.json").write_text(json.dumps(known))
    torch.manual_seed(4)
    net = caffe_nets.serving.build_model(code, len(LABELS), **shape)
    torch.save(net.state_dict(), checkpoints / "model_epoch_final.pth")
    seen = pictures(5, channels=3, side=40)
    write_pictures(tmp_path / "in", seen)
    caffe_nets.infer(code, checkpoints, tmp_path / "in", tmp_path, "r.json", threshold=0.0, validate=False)
    expected = rows_of(tmp_path / "r.json", LABELS)
    assert np.ptp(expected, axis=0).max() > 1e-3
    await serve(triton, name, "Caffe", code, checkpoints)
    results = await asyncio.to_thread(ask, triton.address_file, name, [encoded(pixels) for pixels in seen])
    np.testing.assert_allclose(probabilities(results, LABELS), expected, rtol=1e-5, atol=1e-6)
    inputs = np.stack([caffe_nets.serving.preprocess(code, Image.fromarray(pixels), **shape) for pixels in seen])
    answers = await asyncio.to_thread(infer, triton.address_file, name, inputs)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("open(home + '/secret').read()", "Permission denied.*secret"),
        # When it is asked, too.
        ("nn.Flatten.forward = lambda *_: open(home + '/secret')", "Permission denied.*secret"),
        ("open(home + '/inference/repository/confined/config.pbtxt', 'a')", "Permission denied.*config.pbtxt"),
    ],
)
async def test_a_models_own_code_reaches_neither_passwords_nor_the_repository(
    triton: ServedHome, attempt: str, words: str
) -> None:
    (triton.home / "secret").write_text("secret")
    code, checkpoints = write_training(triton.home / "trainings" / "confined")
    program = (code / "model.py").read_text()
    (code / "model.py").write_text(program.replace("return nn", f"home = {str(triton.home)!r}; {attempt}; return nn"))
    try:
        with pytest.raises(LoadRefusedError, match=words):
            await serve(triton, "confined", "PyTorch", code, checkpoints)
    finally:
        shutil.rmtree(code.parent)
        await triton.repository.remove("confined", "uid-confined")
