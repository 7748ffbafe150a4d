"""Training a model directory for real: it learns, goes on where it was, and is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets import serving
from caffe_nets.schema import NetParameter
from PIL import Image

BUILTIN = Path(__file__).parents[3] / "services/models/models_service/builtin"
TINY = """
layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.004 mirror: true crop_size: 24 mean_file: "/elsewhere/mean.binaryproto" }
  data_param { batch_size: 32 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 4 stride: 4 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
PROGRAM = "import sys, caffe_nets; caffe_nets.train(*sys.argv[1:])"


def write_tiny(folder: Path, solver: str) -> Path:
    folder.mkdir()
    (folder / "train_test.prototxt").write_text(TINY)
    (folder / "solver.prototxt").write_text('net: "train_test.prototxt" base_lr: 0.05 momentum: 0.9 ' + solver)
    return folder


def train(folder: Path, train_dir: Path, parameters: Path, weights: str = "", ranks: int = 1, before: str = "") -> str:
    """The output of a finished training in processes of its own, which run the line `before` first."""
    train_dir.mkdir(exist_ok=True)
    program = train_dir.parent / "program.py"
    program.write_text(f"{before}\n{PROGRAM}")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(program), str(folder), str(train_dir), weights]
    environment = os.environ | {"DLMESH_PARAMETERS": str(parameters), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"Iteration (\d+), loss = ([\d.e-]+)", output)}


def top1(file: Path) -> float:
    document: dict[str, Any] = json.loads(file.read_text())
    best: dict[str, str] = {}
    for row in document["result"]:
        best.setdefault(row["sampleId"], row["label"])
    return float(np.mean([best[row["sampleId"]] == row["groundTruth"] for row in document["samples"]]))


def check_served(folder: Path, out: Path, tmp_path: Path) -> None:
    """The bundle of a served model and a validation answer the same for a picture that has to be resized."""
    import caffe_nets

    bundle = tmp_path / "bundle"
    shutil.copytree(folder, bundle)
    for name in ("serving.json", "model_epoch_final.pth"):
        shutil.copy(out / name, bundle)
    facts = json.loads((bundle / "serving.json").read_text())
    shape = [facts[side] for side in ("channels", "height", "width")]
    model = serving.build_model(bundle, len(facts["labels"]), *shape)
    model.load_state_dict(torch.load(bundle / "model_epoch_final.pth", weights_only=True))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    pixels = serving.preprocess(bundle, picture, *shape)
    assert (list(pixels.shape), pixels.dtype) == (shape, np.float32)
    with torch.inference_mode():
        scores = torch.softmax(model(torch.from_numpy(pixels)[None]), 1)
    (tmp_path / "pictures").mkdir()
    picture.save(tmp_path / "pictures/one.png")
    caffe_nets.infer(folder, out, tmp_path / "pictures", tmp_path, "one.json", validate=False)
    best = json.loads((tmp_path / "one.json").read_text())["result"][0]
    assert best["prob"] == pytest.approx(float(scores.max()), rel=1e-4)
    assert best["label"] == facts["labels"][int(scores.argmax())]


@pytest.mark.slow
@pytest.mark.parametrize(("template", "iterations", "least"), [("caffe-lenet", 150, 0.95), ("caffe-cifar", 200, 0.85)])
def test_templates_learn_digits_and_are_asked(
    tmp_path: Path, request: pytest.FixtureRequest, parameters: Any, template: str, iterations: int, least: float
) -> None:
    import caffe_nets

    data = request.getfixturevalue("digits" if template == "caffe-lenet" else "colour_digits")
    folder, out = BUILTIN / template, tmp_path / "out"
    output = train(folder, out, parameters(data, maxiteration=iterations, batch_size=64))
    assert float(re.findall(rf"Iteration {iterations}: tag test_accuracy, simple_value ([\d.]+)", output)[-1]) >= least
    caffe_nets.infer(folder, out, data / "test", tmp_path, "result.json")
    assert top1(tmp_path / "result.json") >= least
    written = NetParameter.FromString((out / "model_final.caffemodel").read_bytes())
    state = torch.load(out / "model_epoch_final.pth", weights_only=True)
    blobs = {layer.name: layer.blobs for layer in written.layer if layer.blobs}
    np.testing.assert_array_equal(list(blobs["conv1"][0].data), state["layers.conv1.weight"].flatten().numpy())

    check_served(folder, out, tmp_path)


@pytest.mark.slow
def test_a_resumed_training_repeats_the_losses(tmp_path: Path, digits: Path, parameters: Any) -> None:
    folder = write_tiny(tmp_path / "model", "max_iter: 60 display: 1 iter_size: 2 snapshot: 20 clip_gradients: 5")
    told = parameters(digits, checkpoint_interval_steps=30)
    whole = train(folder, tmp_path / "out", told)
    out = tmp_path / "out"
    assert {"model_epoch_1.pth", "model_epoch_2.pth", "model_epoch_3.pth"} <= {path.name for path in out.iterdir()}
    first = torch.load(out / "model_epoch_final.pth", weights_only=True)
    steps = sorted((out / "steps").glob("step-*"))
    assert [path.name for path in steps] == ["step-0000000030", "step-0000000060"]
    for file in steps[1].iterdir():
        if file.is_file():
            file.unlink()
    rest = losses(train(folder, out, told))
    assert min(rest) == 31
    expected = losses(whole)
    assert rest == pytest.approx({step: expected[step] for step in rest}, rel=1e-5)
    again = torch.load(out / "model_epoch_final.pth", weights_only=True)
    for name, value in first.items():
        torch.testing.assert_close(again[name], value)
    check_served(folder, out, tmp_path)


@pytest.mark.slow
def test_two_ranks_divide_the_batch_and_begin_from_a_caffemodel(tmp_path: Path, digits: Path, parameters: Any) -> None:
    folder = write_tiny(tmp_path / "model", "max_iter: 20 display: 10")
    assert "Batch size" not in train(folder, tmp_path / "one", parameters(digits))
    output = train(
        folder,
        tmp_path / "two",
        parameters(digits, learningrate=1e-9, batch_size=5),
        weights=str(tmp_path / "one/model_final.caffemodel"),
        ranks=2,
    )
    assert "weights were loaded for the layers conv, bn, ip" in output
    assert output.count("Batch size 5: a step takes 6 samples, rounded up to a multiple of the 2 workers\n") == 1
    first = torch.load(tmp_path / "one/model_epoch_final.pth", weights_only=True)
    second = torch.load(tmp_path / "two/model_epoch_final.pth", weights_only=True)
    torch.testing.assert_close(second["layers.ip.weight"], first["layers.ip.weight"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_weights_beyond_a_caffemodel_end_no_training(tmp_path: Path, digits: Path, parameters: Any) -> None:
    folder = write_tiny(tmp_path / "model", "max_iter: 1")
    limit = "import caffe_nets.weights; caffe_nets.weights.MAX_CAFFEMODEL_BYTES = 1000"
    output = train(folder, tmp_path / "out", parameters(digits), before=limit)
    # conv 4 x 16 and 4, bn 4, 4 and 1, ip 10 x 144 and 10
    assert "model_final.caffemodel was not written: its weights are 6108 bytes; Caffe reads no file of more" in output
    assert (tmp_path / "out/model_epoch_final.pth").is_file()
    assert not (tmp_path / "out/model_final.caffemodel").exists()
