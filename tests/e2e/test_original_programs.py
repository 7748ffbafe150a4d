"""Model directories in the style of the original platform, which know nothing of this one, run unchanged."""

from __future__ import annotations

import re
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import Client, named
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import held_out

pytestmark = [pytest.mark.platform, pytest.mark.slow]

# Reads LMDB by itself, with the fields of Caffe's Datum; takes hyperparameters from the parameter module; prints.
PYTORCH = """
import argparse
import os
import time

import lmdb
import numpy as np
import pth_parameter_mgr
import torch
import torch.nn as nn
from monitor_pth import PytorchMonitor


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def datum(data):
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 2:
            size, at = varint(data, at)
            found[key >> 3] = data[at:at + size]
            at += size
        elif key & 7 == 0:
            found[key >> 3], at = varint(data, at)
        else:
            raise ValueError(key)
    return found


class Pictures(torch.utils.data.Dataset):
    def __init__(self, path):
        self.items, self.names = [], []
        with lmdb.open(path, readonly=True, lock=False).begin() as transaction:
            for key, value in transaction.cursor():
                self.names.append(key.decode())
                one = datum(value)
                shape = (one.get(1, 1), one[2], one[3])
                pixels = np.frombuffer(one[4], np.uint8).reshape(shape).astype(np.float32) / 255
                self.items.append((torch.from_numpy(pixels), one.get(5, 0)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.hidden, self.out = nn.Linear(inputs, 64), nn.Linear(64, classes)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x.flatten(1))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", default="train")
    parser.add_argument("--weights", default="")
    args, unknown = parser.parse_known_args()
    assert os.path.isdir(os.environ["DATA_DIR"])
    train_set = Pictures(pth_parameter_mgr.getTrainData(False))
    test_set = Pictures(pth_parameter_mgr.getTestData(False))
    torch.manual_seed(0)
    model = Net(train_set[0][0].numel(), 10)
    if args.weights:
        for name in os.listdir(args.weights):
            if name.endswith(".pth"):
                model.load_state_dict(torch.load(os.path.join(args.weights, name)))
                print("warm start from", name)
    optimizer = pth_parameter_mgr.getOptimizer(model)
    scheduler = pth_parameter_mgr.getLearningRate(optimizer)
    batches = torch.utils.data.DataLoader(train_set, pth_parameter_mgr.getTrainBatchSize(), shuffle=True)
    epochs, step = pth_parameter_mgr.getEpoch(), 0
    print("Total iterations: %d" % (epochs * len(batches)))
    for epoch in range(1, epochs + 1):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            step += 1
            print("Timestamp %d, Iteration %d" % (time.time() * 1000, step))
            print("Iteration %d: tag train_loss, simple_value %f" % (step, loss.item()))
        if scheduler:
            scheduler.step()
        torch.save(model.state_dict(), os.path.join(args.train_dir, "model_epoch_%d.pth" % epoch))
    torch.save(model.state_dict(), os.path.join(args.train_dir, "model_epoch_final.pth"))
"""

INFERENCE = """
import argparse
import os

import inference_helper
import torch
from main import Net, Pictures

parser = argparse.ArgumentParser()
for option in ("model", "input_dir", "output_dir", "output_file", "prob_thresh", "validate", "label_file"):
    parser.add_argument("--" + option, default="")
args, _ = parser.parse_known_args()
data = Pictures(args.input_dir)
model = Net(data[0][0].numel(), 10)
model.load_state_dict(torch.load(os.path.join(args.model, "model_epoch_final.pth")))
model.eval()
with torch.no_grad():
    probabilities = torch.softmax(model(torch.stack([x for x, _ in data])), 1).tolist()
inference_helper.writeClassificationResult(
    os.path.join(args.output_dir, args.output_file),
    data.names,
    probabilities,
    label_file=args.label_file,
    ground_truth=[y for _, y in data] if args.validate else None,
    prob_thresh=args.prob_thresh,
)
"""

# Its data reader and network are those of main.py; the loggers are in the older of the published forms.
ELASTIC = """
import os
import sys
sys.path.insert(0, os.path.join(os.environ["FABRIC_HOME"], "libs", "fabric.zip"))

import pth_parameter_mgr
import torch
from callbacks import LoggerCallback
from emetrics import EMetrics
from fabric_model import FabricModel
from main import Net, Pictures


class EDTLoggerCallback(LoggerCallback):
    def log_train_metrics(self, loss, acc, completed_batch, worker=0):
        with EMetrics.open() as metrics:
            metrics.record("test", completed_batch, {"loss": loss, "accuracy": acc / 100})

    def log_test_metrics(self, loss, acc, completed_batch, worker=0):
        print("test accuracy in percent %.1f" % acc)


def get_datasets():
    return Pictures(pth_parameter_mgr.getTrainData(False)), Pictures(pth_parameter_mgr.getTestData(False))


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Net(get_datasets()[0][0][0].numel(), 10)
    optimizer = pth_parameter_mgr.getOptimizer(model)
    loss = torch.nn.functional.cross_entropy
    edt = FabricModel(model, get_datasets, loss, optimizer, driver_logger=EDTLoggerCallback())
    edt.train(pth_parameter_mgr.getEpoch(), 32, 16)
"""

CAFFE_NET = """
name: "quick"
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 } data_param { source: "train_lmdb" backend: LMDB batch_size: 32 } }
layer { name: "pictures" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00390625 } data_param { source: "test_lmdb" backend: LMDB batch_size: 60 } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 12 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "n1" type: "BatchNorm" bottom: "c1" top: "c1" }
layer { name: "s1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "p1" top: "fc" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "top1" type: "Accuracy" bottom: "fc" bottom: "label" top: "top1" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
CAFFE_SOLVER = """
net: "quick_train_test.prototxt"
test_iter: 3
test_interval: 50
base_lr: 0.02
momentum: 0.9
weight_decay: 0.0001
lr_policy: "multistep"
gamma: 0.1
stepvalue: 120
stepvalue: 150
display: 20
max_iter: 160
snapshot: 80
snapshot_prefix: "quick"
solver_mode: CPU
"""


@pytest.fixture(name="digits")
def shared_digits(trained: MainJob) -> MainJob:
    """The dataset `shared` is there."""
    return trained


def template(admin: Client, platform: RunningPlatform, name: str, framework: str, **files: str) -> None:
    folder = platform.home / "data" / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    admin.post("/modeltemplates", {"name": name, "path": name, "framework": framework})


def train(admin: Client, name: str, framework: str, training: str, **fields: Any) -> dict[str, Any]:
    path = f"/models/{name}/trainings"
    admin.post(path, {"trainName": training, "dlFramework": framework, "clusterSize": 1, **fields})
    return ended(admin, f"{path}/{training}", "trainingParameters")


def ended(admin: Client, path: str, part: str = "") -> dict[str, Any]:
    def detail() -> dict[str, Any]:
        answer = admin.get(path)
        found: dict[str, Any] = answer[part] if part else answer
        return found

    admin.until(lambda: detail()["status"] in ("FINISHED", "FAILED", "STOPPED"), seconds=600)
    assert detail()["status"] == "FINISHED", detail()["statusMessage"]
    return detail()


def top1(admin: Client, name: str, training: str) -> float:
    admin.post(f"/models/{name}/validations", {"valName": "check", "trainName": training, "metrics": ["Top1"]})

    def validation() -> dict[str, Any]:
        (found,) = admin.get(f"/models/{name}/validations")
        one: dict[str, Any] = found
        return one

    admin.until(lambda: validation()["status"] in ("FINISHED", "FAILED"), seconds=240)
    assert validation()["status"] == "FINISHED", validation()["statusMessage"]
    return float(named(validation()["outPairs"], "name", "Top1")["value"])


def predicted(admin: Client, platform: RunningPlatform, name: str, pause_seconds: float = 0) -> float:
    """Which part of pictures that were in no training the model's training tells rightly when it has been served for
    some time."""
    job = MainJob(admin, "digits", prefix=name)
    job.create_inference()
    admin.until(lambda: admin.get(f"/servedmodels/{job.inference_model}")["state"] == "READY", seconds=120)
    time.sleep(pause_seconds)
    job.start_prediction(held_out(platform), f"{name}-ten")
    predictions = job.await_prediction(f"{name}-ten")
    admin.delete(f"/inferences/{name}-ten")
    admin.delete(f"/models/{job.inference_model}")
    assert len(predictions) == 10
    return sum(prediction.label == prediction.image[0] for prediction in predictions) / len(predictions)


def test_a_pytorch_program_with_its_own_reader(admin: Client, platform: RunningPlatform, digits: MainJob) -> None:
    template(admin, platform, "old-pytorch", "PyTorch", main__py=PYTORCH, inference__py=INFERENCE)
    hyperparameter = {
        "solvertype": "SGD",
        "learningrate": 0.1,
        "momentum": 0.9,
        "lrpolicy": "multistep",
        "stepvalues": "4,6",
        "gamma": 0.3,
        "epoch": 8,
    }
    fields = {"dataset": "shared", "sig": "local", "accelerator": "Single", "batchsize": 32}
    admin.post(
        "/models", {"name": "old-pytorch", "templatename": "old-pytorch", "hyperparameter": hyperparameter, **fields}
    )
    first = train(admin, "old-pytorch", "PyTorch", "first")
    assert first["progress"] == 100
    # It reports by what it prints alone.
    curve = admin.get("/models/old-pytorch/trainings/first/metrics?series=train_loss")
    log = Path(platform.home / "jobs" / first["appid"] / "attempt-1" / "rank-0.out").read_text()
    step, loss = re.findall(r"Iteration (\d+): tag train_loss, simple_value (\S+)", log)[-1]
    assert (curve[-1]["step"], curve[-1]["value"]) == (int(step), float(loss))
    assert top1(admin, "old-pytorch", "first") > 0.9
    # Meanwhile the service has removed twice what no model needs.
    assert predicted(admin, platform, "old-pytorch", pause_seconds=11) >= 0.8
    assert admin.get("/models/old-pytorch/trainings/first/weightfile") == "model_epoch_final.pth"
    again = train(admin, "old-pytorch", "PyTorch", "again", wtfolder=first["path"])
    log = Path(platform.home / "jobs" / again["appid"] / "attempt-1" / "rank-0.out").read_text()
    assert "warm start from model_epoch_final.pth" in log


def test_an_elastic_program_from_fabric_zip(admin: Client, platform: RunningPlatform, digits: MainJob) -> None:
    files = {"main__py": PYTORCH, "elastic-main__py": ELASTIC, "inference__py": INFERENCE}
    template(admin, platform, "old-elastic", "PyTorch", **files)
    hyperparameter = {"solvertype": "SGD", "learningrate": 0.03, "momentum": 0.9, "epoch": 8}
    fields = {"dataset": "shared", "sig": "local", "accelerator": "Elastic", "batchsize": 32}
    admin.post(
        "/models", {"name": "old-elastic", "templatename": "old-elastic", "hyperparameter": hyperparameter, **fields}
    )
    done = train(admin, "old-elastic", "PyTorch", "first", minWorkers=1)
    assert done["progress"] == 100
    log = Path(platform.home / "jobs" / done["appid"] / "attempt-1" / "rank-0.out").read_text()
    assert log.count("test accuracy in percent") == 8
    assert admin.get("/models/old-elastic/trainings/first/weightfile") == "model_epoch_final.pth"
    written = Path(done["path"]).parent / "log" / "evaluation-metrics.txt"
    assert '"grouplabel": "test"' in written.read_text()
    assert top1(admin, "old-elastic", "first") > 0.9


def test_a_caffe_solver_and_net(admin: Client, platform: RunningPlatform, digits: MainJob) -> None:
    deploy = textwrap.dedent(CAFFE_NET).split('layer { name: "c1"')[1].split('layer { name: "top1"')[0]
    shape = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 16 dim: 16 } } }\n'
    template(
        admin,
        platform,
        "old-caffe",
        "Caffe",
        quick_solver__prototxt=CAFFE_SOLVER,
        quick_train_test__prototxt=CAFFE_NET,
        quick_inference__prototxt=f'{shape}layer {{ name: "c1"{deploy}'
        'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n',
    )
    detail = admin.get("/modeltemplates/old-caffe")
    assert detail["solverprototxtpath"].endswith("quick_solver.prototxt")
    fields = {"dataset": "shared", "sig": "local", "accelerator": "Single", "batchsize": 32}
    admin.post("/models", {"name": "old-caffe", "templatename": "old-caffe", **fields})
    assert train(admin, "old-caffe", "Caffe", "first")["progress"] == 100
    assert top1(admin, "old-caffe", "first") > 0.9
    assert predicted(admin, platform, "old-caffe") >= 0.8
    admin.delete("/models/old-caffe")
    admin.delete("/modeltemplates/old-caffe")
