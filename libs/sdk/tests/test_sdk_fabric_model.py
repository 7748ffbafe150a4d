"""FabricModel programs on real processes: the same training on any number of workers, and without steps in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx.reference import ReferenceEvaluator

pytestmark = pytest.mark.slow

# Runs one after the other, their workers forked from one process that has imported what takes long. The program below
# `main` is a user's; `seen` is where its dataset notes what it was asked for.
PROGRAM = """
import copy, json, os, signal, sys, time
import torch
from torch import nn
from sklearn.datasets import load_digits
from fabric_model import FabricModel
from callbacks import Callback, LoggerCallback
from dlmesh_sdk import fabric_async, fabric_training
from testkit.gangs import forked_gang

DIGITS = load_digits()

class Digits(torch.utils.data.Dataset):
    def __init__(self, indices, seen=None, slow=0.0, stop_after=0):
        self.indices, self.seen, self.slow, self.stop_after = indices, seen, slow, stop_after
        self.asked = 0
    def __len__(self):
        return len(self.indices)
    def __getitem__(self, index):
        self.asked += 1
        if self.seen:
            self.seen.write(f"{index}\\n")
            self.seen.flush()
        if self.stop_after and self.asked == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.slow)
        place = self.indices[index]
        return torch.tensor(DIGITS.data[place] / 16, dtype=torch.float32), int(DIGITS.target[place])

class Old(LoggerCallback):
    def log_train_metrics(self, loss, acc, completed_batch, worker=0):
        print("old train", loss, acc, completed_batch, worker, flush=True)
    def log_test_metrics(self, loss, acc, completed_batch, worker=0):
        print("old test", loss, acc, completed_batch, worker, flush=True)
    def on_train_end(self):
        print("old end", flush=True)

class New(LoggerCallback):
    def on_train_begin(self):
        print("new begin", flush=True)
    def log_train_metrics(self, metrics, iteration, epoch, workers):
        print("new train", sorted(metrics), iteration, epoch, workers, flush=True)
    def log_test_metrics(self, metrics, iteration, epoch):
        print("new test", sorted(metrics), iteration, epoch, flush=True)

class Watch(Callback):
    def on_epoch_begin(self, epoch):
        print("epoch begins", epoch, self.params["epochs"], type(self.params["optimizer"]).__name__, flush=True)
    def on_epoch_end(self, epoch, save_model):
        print("epoch ends", epoch, bool(save_model), type(self.model.get_loss_function()).__name__, flush=True)
        assert type(copy.deepcopy(self.model)) is nn.Sequential

def step(model, data, eva, train_loader, fn_args):
    x, y = data
    optimizer = model.get_optimizer()
    optimizer.zero_grad()
    output = model(x)
    loss = model.get_loss_function()(output, y)
    loss.backward()
    if fn_args != "gradients only":
        optimizer.step()
    return eva(output, y), loss

def test(model, test_iter, fn_args):
    losses = [model.get_loss_function()(model(x), y) for x, y in test_iter]
    return sum(losses) / len(losses)

def collate(samples):
    print("collated", len(samples), flush=True)
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])

def main(run, rank):
    torch.manual_seed(1 + rank)
    model = nn.Sequential(nn.Linear(64, run.get("hidden", 16)), nn.Tanh(), nn.Linear(run.get("hidden", 16), 10))
    optimizer = torch.optim.SGD(model.parameters(), run.get("rate", 0.2), momentum=run.get("momentum", 0.9))
    seen = open(f"seen-{run['name']}-{rank}", "a")
    samples = run.get("samples", 50)
    slow = run.get("slow", [0.0] * 8)[rank]
    stop = run.get("stop_after", 0) if rank == run["workers"] - 1 else 0
    data = lambda: (Digits(range(samples), seen, slow, stop), Digits(range(samples, samples + 60)))
    extra = {name: globals()[value] for name, value in run.get("functions", {}).items()}
    loss = nn.CrossEntropyLoss()
    fabric = FabricModel(model, data, loss, optimizer, **extra, **run.get("named", {}))
    fabric.train(run.get("epochs", 3), run["batch"], 8, **run.get("train", {}))
    # On every worker the weights are there, whoever wrote them.
    assert "model_epoch_final.pth" in os.listdir(fabric.download(f"kept-{run['name']}"))

def work(run, rank):
    os.environ |= run.get("environment", {})
    sys.stdout = open(f"out-{run['name']}-{rank}", "a")
    main(run, rank)

for run in json.loads(sys.argv[1]):
    codes = forked_gang(run["workers"], lambda rank: work(run, rank))
    assert codes == run.get("codes", [0] * run["workers"]), (run, codes)
"""


def run_all(folder: Path, runs: list[dict[str, Any]]) -> None:
    """Run one after the other; each writes into `folder/<its training>`."""
    (folder / "parameters.json").write_text(json.dumps({"seed": 3, "checkpoint_interval_steps": 4}))
    for run in runs:
        environment = run.setdefault("environment", {})
        environment |= {"DLMESH_TRAIN_DIR": str(folder / run.get("training", run["name"])), "DLMESH_MAX_WORKERS": "4"}
    environment = os.environ | {"DLMESH_PARAMETERS": str(folder / "parameters.json"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(runs)],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    outputs = "\n".join(f"== {file.name}\n{file.read_text()[-2000:]}" for file in sorted(folder.glob("out-*")))
    assert done.returncode == 0, done.stderr + outputs


def weights(folder: Path, training: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / training / "model_epoch_final.pth", weights_only=True)
    return found


def lines(folder: Path, name: str, rank: int = 0) -> list[str]:
    return (folder / f"out-{name}-{rank}").read_text().splitlines()


def seen(folder: Path, name: str) -> list[int]:
    return [int(line) for file in sorted(folder.glob(f"seen-{name}-*")) for line in file.read_text().split()]


def test_a_training_is_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    """R11: 1 -> 2 -> 1 (and 3) workers, stopped in between: same batches, same samples, same weights."""
    # 50 samples in global batches of 8: the last batch is filled up, so 7 batches of 8 an epoch.
    run_all(
        tmp_path,
        [
            {"name": "one", "workers": 1, "batch": 2},
            {"name": "three", "workers": 3, "batch": 2},
            {"name": "first", "training": "changing", "workers": 1, "batch": 2, "stop_after": 5 * 8, "codes": [143]},
            {
                "name": "second",
                "training": "changing",
                "workers": 2,
                "batch": 2,
                "stop_after": 5 * 4,
                "codes": [143, 143],
            },
            {"name": "third", "training": "changing", "workers": 1, "batch": 2},
        ],
    )
    expected = weights(tmp_path, "one")
    for training in ("three", "changing"):
        for name, values in weights(tmp_path, training).items():
            torch.testing.assert_close(values, expected[name], atol=1e-5, rtol=1e-4, msg=f"{training}: {name}")
    whole = Counter(seen(tmp_path, "one"))
    assert set(whole) == set(range(50))
    assert sum(whole.values()) == 3 * 7 * 8
    assert Counter(seen(tmp_path, "three")) == whole
    # What was read ahead before a stop is read again; nothing is left out.
    parts = [Counter(seen(tmp_path, name)) for name in ("first", "second", "third")]
    assert not whole - sum(parts, Counter())
    stopped = [line for name in ("first", "second") for line in lines(tmp_path, name) if line.startswith("Stopped")]
    assert len(stopped) == 2
    last = [line for line in lines(tmp_path, "third") if "tag test_loss" in line][-1]
    assert last.startswith("Iteration 21:")
    loss = float(last.rsplit(" ", 1)[1])
    assert loss == pytest.approx(
        float([x for x in lines(tmp_path, "one") if "test_loss" in x][-1].rsplit(" ", 1)[1]), rel=1e-3
    )


def test_a_batch_beyond_the_samples_is_all_of_them_on_any_number_of_workers(tmp_path: Path) -> None:
    huge: dict[str, Any] = {"batch": 2**31 - 1, "epochs": 6}
    run_all(
        tmp_path,
        [
            {"name": "one", "workers": 1, **huge},
            # A step of all 50 samples is 17, 17 and 16.
            {"name": "first", "training": "changing", "workers": 3, **huge, "stop_after": 2 * 16, "codes": [143] * 3},
            {"name": "second", "training": "changing", "workers": 1, **huge},
        ],
    )
    for name, values in weights(tmp_path, "changing").items():
        torch.testing.assert_close(values, weights(tmp_path, "one")[name], atol=1e-5, rtol=1e-4)
    assert Counter(seen(tmp_path, "one")) == Counter(list(range(50)) * 6)
    assert "Total iterations: 6" in lines(tmp_path, "second")
    asked = 4 * (2**31 - 1)
    for name in ("one", "first"):
        said = [line for line in lines(tmp_path, name) if line.startswith("Batch size")]
        assert said == [f"Batch size {asked}: a step takes 50 samples, there are 50"]
    assert not any(line.startswith("Batch size") for line in lines(tmp_path, "first", rank=1))


def test_callbacks_of_both_forms_and_own_functions(tmp_path: Path) -> None:
    own = {"fn_step_train": "step", "fn_test": "test", "fn_batch_collate": "collate"}
    run_all(
        tmp_path,
        [
            {
                "name": "plain",
                "workers": 2,
                "batch": 2,
                "functions": {"driver_logger": "Old", "user_callback": "Watch"},
            },
            {"name": "own", "workers": 2, "batch": 2, "functions": own | {"worker_logger_callback": "New"}},
            {
                "name": "gradients",
                "workers": 2,
                "batch": 2,
                "functions": {"fn_step_train": "step"},
                "named": {"fn_args": "gradients only"},
                "train": {"checkpoint_freq": 2, "validation_freq": 0},
            },
        ],
    )
    # An own step that does what ours does leads to the same weights, whoever makes the optimizer's step.
    for training in ("own", "gradients"):
        for name, values in weights(tmp_path, training).items():
            torch.testing.assert_close(values, weights(tmp_path, "plain")[name], msg=f"{training}: {name}")
    plain = lines(tmp_path, "plain")
    assert [line for line in plain if line.startswith("epoch begins")] == [f"epoch begins {n} 3 SGD" for n in range(3)]
    assert [line for line in plain if line.startswith("epoch ends")] == [
        f"epoch ends {n} True CrossEntropyLoss" for n in range(3)
    ]
    tests = [line.split() for line in plain if line.startswith("old test")]
    assert [words[4] for words in tests] == ["7", "14", "21"]
    assert all(0 < float(words[3]) <= 100 for words in tests)
    assert any(line.startswith("old train") for line in plain)
    assert plain.count("old end") == 1
    for rank in (0, 1):
        own_lines = lines(tmp_path, "own", rank)
        assert "new begin" in own_lines
        assert any(line.startswith("new train ['accuracy', 'loss'] 21 3 2") for line in own_lines)
        assert "new test ['loss'] 21 3" in own_lines
        assert "collated 4" in own_lines
    assert not any("old" in line for line in lines(tmp_path, "plain", 1))
    kept = {file.name for file in (tmp_path / "gradients").glob("*.pth")}
    assert kept == {"model_epoch_2.pth", "model_epoch_2_optimizer_state.pth", "model_epoch_final.pth"}
    state = torch.load(tmp_path / "gradients" / "model_epoch_2_optimizer_state.pth", weights_only=True)
    assert state["param_groups"][0]["momentum"] == 0.9
    assert [tuple(one["momentum_buffer"].shape) for one in state["state"].values()] == [
        (16, 64),
        (16,),
        (10, 16),
        (10,),
    ]
    assert len([line for line in lines(tmp_path, "gradients") if "test_loss" in line]) == 1


def test_async_workers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    # The second worker needs 30 ms more for a sample. A batch is 32/4 samples, 8 epochs of 50 batches.
    run_all(
        tmp_path,
        [
            {
                "name": "uneven",
                "workers": 2,
                "batch": 8,
                "epochs": 8,
                "rate": 0.5,
                "samples": 400,
                "momentum": 0.0,
                "slow": [0.0, 0.03],
                "environment": {"DLMESH_SYNC_MODE": "ASYNC", "DLMESH_ASYNC_MAX_STALENESS": "10000"},
                "functions": {"user_callback": "Watch", "driver_logger": "Old"},
            },
            {
                "name": "own",
                "workers": 2,
                "batch": 8,
                "momentum": 0.0,
                "environment": {"DLMESH_SYNC_MODE": "ASYNC"},
                "functions": {"fn_step_train": "step", "fn_test": "test", "fn_batch_collate": "collate"},
            },
            {
                "name": "stops",
                "training": "resumed",
                "workers": 2,
                "batch": 8,
                "epochs": 3,
                "samples": 160,
                "stop_after": 80,
                "momentum": 0.0,
                "environment": {"DLMESH_SYNC_MODE": "ASYNC"},
                "codes": [143, 143],
            },
            {
                "name": "goes-on",
                "training": "resumed",
                "workers": 1,
                "batch": 8,
                "epochs": 3,
                "samples": 160,
                "momentum": 0.0,
                "environment": {"DLMESH_SYNC_MODE": "ASYNC"},
            },
        ],
    )
    taken = [len((tmp_path / f"seen-uneven-{rank}").read_text().split()) for rank in (0, 1)]
    assert sum(taken) == 8 * 400
    assert Counter(seen(tmp_path, "uneven")) == Counter(dict.fromkeys(range(400), 8))
    assert taken[0] > 5 * taken[1] > 0
    output = lines(tmp_path, "uneven")
    assert [line for line in output if line.startswith("epoch ends")] == [
        f"epoch ends {n} True CrossEntropyLoss" for n in range(8)
    ]
    last = [line.split() for line in output if line.startswith("old test")][-1]
    assert float(last[3]) > 75
    # The staleness of what the slow one brought is real.
    (summary,) = [line for line in output if line.startswith("ASYNC:")]
    assert summary.startswith("ASYNC: 400 steps")
    assert float(summary.split("mean staleness ")[1].split(",")[0]) > 0
    # Own functions are called; 50 samples are 7 batches of 32/4 in each of 3 epochs.
    assert any(line.startswith("ASYNC: 21 steps") for line in lines(tmp_path, "own"))
    assert "collated 8" in lines(tmp_path, "own")
    assert len([line for line in lines(tmp_path, "own") if "tag test_loss" in line]) == 3
    # A stop and another number of workers: every batch counts once in the end.
    assert any(line.startswith("Stopped after iteration") for line in lines(tmp_path, "stops"))
    (summary,) = [line for line in lines(tmp_path, "goes-on") if line.startswith("ASYNC:")]
    assert summary.startswith("ASYNC: 60 steps")
    both = Counter(seen(tmp_path, "stops") + seen(tmp_path, "goes-on"))
    assert not Counter(dict.fromkeys(range(160), 3)) - both
    assert sum(both.values()) <= 3 * 160 + 3 * 8


ALONE = """
import torch
from callbacks import LoggerCallback
from fabric_model import FabricModel

class Log(LoggerCallback):
    def log_test_metrics(self, metrics, iteration, epoch):
        print("metrics", sorted(metrics), round(metrics["accuracy"] + metrics["wrong"], 4), flush=True)

def wrong(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()

data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.randint(2, (20,)))
net = torch.nn.Linear(3, 2)
fabric = FabricModel(net, lambda: (data, data), torch.nn.functional.cross_entropy,
                     lambda weights: torch.optim.Adam(weights, 0.1), ["accuracy", wrong], driver_logger_callback=Log,
                     save_to_onnx=True)
try:
    fabric.download("too-early")
except FileNotFoundError as error:
    print(error)
fabric.train(2, 5, 4)
print(fabric.download(out_dir="kept"))
adam = torch.optim.Adam(net.parameters())
for model, getter, loss in (([1], lambda: (data, data), abs), (net, lambda: (data, data), None),
                            (net, lambda: ([], data), abs)):
    try:
        FabricModel(model, getter, loss, adam).train(2, 5)
    except (TypeError, ValueError) as error:
        print(error)
"""


def test_alone_it_trains_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ALONE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH")}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment | {"RESULT_DIR": str(tmp_path / "result")},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    written = tmp_path / "result" / "model" / "train"
    assert lines[0] == f"there are no weights in {written}; train first"
    assert "Total iterations: 8" in lines
    assert lines.count("metrics ['accuracy', 'loss', 'wrong'] 1.0") == 2
    assert any(line.startswith("Iteration 8: tag test_wrong, simple_value") for line in lines)
    assert lines[-4:] == [
        "kept",
        "FabricModel: model is [1]; it has to be a torch module or a Keras model",
        "FabricModel: loss_function is None; it has to be a function",
        "FabricModel: the training data of get_datasets is empty",
    ]
    names = [f"model_epoch_{number}{what}.pth" for number in (1, 2) for what in ("", "_optimizer_state")]
    names += ["model.onnx", "model_epoch_final.pth"]
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == sorted(names)
    assert {*names, "steps"} >= {file.name for file in written.iterdir()}

    # The exported model computes what the weights do, for any number of samples.
    found = torch.load(tmp_path / "kept" / "model_epoch_final.pth", weights_only=True)
    inputs = torch.randn(7, 3)
    exported = ReferenceEvaluator(str(tmp_path / "kept" / "model.onnx")).run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.tensor(exported[0]), inputs @ found["weight"].T + found["bias"])


PARTS = """
import torch
from fabric_model import FabricModel

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.ones(3), (torch.zeros(1), torch.ones(1))

net = torch.nn.Linear(3, 1)
FabricModel(net, lambda: (Pairs(), Pairs()), lambda outputs, targets: outputs.sum() * 0 + 1,
            torch.optim.SGD(net.parameters(), 0.1)).train(1, 4)
"""


def test_a_test_counts_samples_and_not_the_parts_of_their_targets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARTS],
        cwd=tmp_path,
        env=os.environ | {"DLMESH_TRAIN_DIR": str(tmp_path / "out")},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Iteration 2: tag test_loss, simple_value 1\n" in done.stdout


def test_initial_weights_that_are_gone_end_the_run(tmp_path: Path) -> None:
    """A training that was to begin from them must not begin from nothing."""
    (tmp_path / "program.py").write_text(ALONE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH")}
    done = subprocess.run(
        [sys.executable, "program.py", "--weights", str(tmp_path / "gone.pth")],
        cwd=tmp_path,
        env=environment | {"RESULT_DIR": str(tmp_path / "result")},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert f"FileNotFoundError: --weights: there is no file or folder {tmp_path}/gone.pth" in done.stderr
    assert not (tmp_path / "result").exists()
