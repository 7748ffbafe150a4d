"""Programs in the styles of the original platform, which know nothing of this one, run as ranks of a training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from training_service.domain.specs import TrainingSpec

pytestmark = pytest.mark.slow

# Trainings one after the other, their ranks forked from one process that has imported what takes long.
RANKS = """
import json, os, socket, sys
import torch, torch.distributed
from training_service.worker import run_training
from workerkit.program import end_process

for training in json.loads(sys.argv[1]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = []
    for rank in range(training["ranks"]):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                output = os.open(f"{training['folder']}/out-{rank}", os.O_WRONLY | os.O_CREAT)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                os.environ |= {"WORLD_SIZE": str(training["ranks"]), "LOCAL_WORLD_SIZE": str(training["ranks"])}
                if training["ranks"] > 1:
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                run_training.main(training["folder"] + "/spec.json")
                code = 0
            except SystemExit as end:
                print(end)
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                end_process(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        sys.exit(f"{training['folder']}: {codes}")
"""

DIGITS = """
import os
import numpy as np
import torch

def load(split):
    data = np.load(os.path.join(os.environ["DATA_DIR"], split, "digits.npz"))
    return torch.utils.data.TensorDataset(torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))

def getDatasets():
    return load("train"), load("test")
"""

# The model directory brings its own metrics module, and puts fabric.zip before everything.
OLDEST = {
    "digits.py": DIGITS,
    "emetrics.py": """
import json, os
class EMetrics:
    TEST_GROUP = "test"
    def __init__(self, sub_id=None):
        self.file = open(os.path.join(os.environ["LOG_DIR"], "evaluation-metrics.txt"), "a")
    open = staticmethod(lambda subId=None: EMetrics(subId))
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def record(self, group, iteration, values):
        self.file.write(json.dumps({"own": group, "iteration": iteration, "values": values}) + chr(10))
""",
    "edtcallback.py": """
from callbacks import LoggerCallback
from emetrics import EMetrics

class EDTLoggerCallback(LoggerCallback):
    def log_train_metrics(self, loss, acc, completed_batch, worker=0):
        with EMetrics.open(None) as metrics:
            metrics.record(EMetrics.TEST_GROUP, completed_batch, {"loss": loss, "accuracy": acc / 100})
    def log_test_metrics(self, loss, acc, completed_batch, worker=0):
        print("test metrics", loss < 1, acc, completed_batch, worker)
    def on_train_end(self):
        print("train ends")
""",
    "elastic-main.py": """
import os, sys
sys.path.insert(0, os.environ["FABRIC_HOME"] + "/libs/fabric.zip")
from fabric_model import FabricModel
from edtcallback import EDTLoggerCallback
from digits import getDatasets
import torch
import torch.nn.functional as F

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)
    def forward(self, x):
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)

if __name__ == "__main__":
    import fabric_model
    print("from", fabric_model.__file__)
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    edt = FabricModel(model, getDatasets, F.nll_loss, optimizer, driver_logger=EDTLoggerCallback())
    edt.train(6, 32, 2)
""",
}

NEWER = {
    "digits.py": DIGITS,
    "main.py": """
import torch
from digits import getDatasets
from callbacks import LoggerCallback
from elog import ELog
from emetrics import EMetrics
from pyedt.fabric_model import FabricModel

class Logger(LoggerCallback):
    def on_train_begin(self):
        self.metrics = EMetrics.open()
    def log_train_metrics(self, metrics, iteration, epoch, workers):
        self.metrics.record("train", iteration, {**metrics, "workers": workers})
    def log_test_metrics(self, metrics, iteration, epoch):
        self.metrics.record("test", iteration, metrics)
        with ELog.open() as log:
            log.record("Test", iteration, metrics["loss"], metrics["accuracy"])
    def on_train_end(self):
        self.metrics.close()

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
fabric = FabricModel(model=model, datasets_function=getDatasets, loss_function=torch.nn.CrossEntropyLoss(),
                     optimizer=torch.optim.Adam(model.parameters(), 0.005), metrics=["accuracy"],
                     driver_logger_callback=Logger())
fabric.train(epoch_number=4, effective_batch_size=64, hardware_spec={"nodes": {"num_nodes": 2, "gpu": {"num_gpu": 1}}},
             worker_memory="4g", driver_memory="2g")
""",
}

# torch.distributed and nothing else.
PLAIN = {
    "digits.py": DIGITS,
    "main.py": """
import argparse, os
import torch
import torch.distributed as dist
from digits import load

parser = argparse.ArgumentParser()
parser.add_argument("--train_dir", default="")
parser.add_argument("--weights", default="")
args, unknown = parser.parse_known_args()
for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "NODE_RANK"):
    assert name in os.environ, name
assert int(os.environ["WMLA_NWORKER"]) * int(os.environ["WMLA_WORKER_NDEVICE"]) == int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method="env://")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
if args.weights:
    names = sorted(os.listdir(args.weights))
    name = next((n for n in names if n.startswith("model_epoch_final") and "optimizer" not in n), names[-1])
    model.load_state_dict(torch.load(os.path.join(args.weights, name)))
    print("warm start from", name)
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
data = load("train")
sampler = torch.utils.data.distributed.DistributedSampler(data)
loader = torch.utils.data.DataLoader(data, 64, sampler=sampler)
for epoch in range(1, 5):
    sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), os.path.join(args.train_dir, "model_epoch_%d.pth" % epoch))
if dist.get_rank() == 0:
    torch.save(model.module.state_dict(), os.path.join(args.train_dir, "model_epoch_final.pth"))
dist.destroy_process_group()
""",
}

# As programs of execs are: data below DLI_DATA_FS, results below RESULT_DIR, no arguments.
BY_VARIABLES = {
    "main.py": """
import os
import numpy as np
import torch

meta = dict(pair.split("=") for pair in os.environ["DLI_CS_DATASTORE_META"].split(","))
data = np.load(os.path.join(os.environ["DLI_DATA_FS"], meta["data_path"], "train", "digits.npz"))
model = torch.nn.Linear(64, 10)
if os.environ.get("RESUME_WEIGHT_PATH"):
    model.load_state_dict(torch.load(os.path.join(os.environ["RESUME_WEIGHT_PATH"], "start.pth")))
os.makedirs(os.environ["RESULT_DIR"] + "/model", exist_ok=True)
torch.save(model.state_dict(), os.path.join(os.environ["RESULT_DIR"], "model", "trained.pth"))
torch.save(model.state_dict(), os.path.join(os.environ["RESULT_DIR"], "model", "train", "model_epoch_1.pth"))
""",
}
ONLY_RESULTS = {"main.py": BY_VARIABLES["main.py"].rsplit("torch.save", 1)[0]}


@pytest.fixture(scope="module", name="runs")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the trainings, all of which have ended well."""
    root = tmp_path_factory.mktemp("original")
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    for split, part in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        (root / "data" / split).mkdir(parents=True)
        np.savez(root / "data" / split / "digits.npz", x=x[part], y=y[part])
    (root / "start").mkdir()
    start = {"weight": torch.full((10, 64), 0.5), "bias": torch.zeros(10)}
    torch.save(start, root / "start" / "start.pth")

    def training(name: str, files: Mapping[str, str], ranks: int, **spec: Any) -> dict[str, Any]:
        folder = root / name
        (folder / "code").mkdir(parents=True)
        for file, text in files.items():
            (folder / "code" / file).write_text(text)
        known = {"code": str(folder / "code"), "train_dir": str(folder / "checkpoints"), "weights": ""}
        TrainingSpec(**{**known, "data": {"train": str(root / "data" / "train")}, **spec}).write(folder / "spec.json")
        return {"folder": str(folder), "ranks": ranks}

    two = {"max_workers": 2, "parameters": {"seed": 1}}
    all_of_them = [
        training("oldest", OLDEST, 2, program="elastic-main.py", **two),
        training("newer", NEWER, 2, **two),
        training("plain", PLAIN, 2),
        training("warm", PLAIN, 1, weights=str(root / "plain" / "checkpoints")),
        training("by-variables", BY_VARIABLES, 1, weights=str(root / "start")),
        training("only-results", ONLY_RESULTS, 1),
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", RANKS, json.dumps(all_of_them)],
        cwd=root,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    outputs = "\n".join(f"== {file}\n{file.read_text()[-2000:]}" for file in sorted(root.glob("*/out-*")))
    assert done.returncode == 0, done.stderr + outputs
    return root


def weights(run: Path, name: str = "model_epoch_final.pth") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return found


def accuracy(root: Path, run: str) -> float:
    """Of the two layers that all of them train."""
    data = np.load(root / "data" / "test" / "digits.npz")
    first, first_bias, second, second_bias = weights(root / run).values()
    hidden = torch.relu(torch.from_numpy(data["x"]) @ first.T + first_bias)
    return float(((hidden @ second.T + second_bias).argmax(1).numpy() == data["y"]).mean())


def test_an_oldest_elastic_program(runs: Path) -> None:
    output = (runs / "oldest" / "out-0").read_text().splitlines()
    assert f"from {runs}/oldest/fabric/libs/fabric.zip/fabric_model.py" in output
    tests = [line.split() for line in output if line.startswith("test metrics")]
    assert [words[4] for words in tests] == [str(22 * epoch) for epoch in range(1, 7)]
    assert tests[-1][2] == "True"
    assert 85 < float(tests[-1][3]) <= 100
    assert output.count("train ends") == 1
    # Its own copy of the metrics module was the one that it imported.
    rows = [json.loads(line) for line in (runs / "oldest" / "log" / "evaluation-metrics.txt").read_text().splitlines()]
    assert all(set(row) == {"own", "iteration", "values"} for row in rows)
    assert rows[-1]["iteration"] == 132
    assert 0.5 < rows[-1]["values"]["accuracy"] <= 1
    assert accuracy(runs, "oldest") > 0.85
    assert (runs / "oldest" / "checkpoints" / "model_epoch_6_optimizer_state.pth").is_file()
    assert "test metrics" not in (runs / "oldest" / "out-1").read_text()


def test_a_newer_elastic_program(runs: Path) -> None:
    log = runs / "newer" / "log"
    rows = [json.loads(line) for line in (log / "evaluation-metrics.txt").read_text().splitlines()]
    assert {row["meta"]["training_id"] for row in rows} == {"newer"}
    tests = [row for row in rows if row["grouplabel"] == "test"]
    assert [row["etimes"]["iteration"]["value"] for row in tests] == ["22", "44", "66", "88"]
    assert float(tests[-1]["values"]["accuracy"]["value"]) == pytest.approx(accuracy(runs, "newer"), abs=1e-4)
    trained = [row["values"] for row in rows if row["grouplabel"] == "train"]
    assert trained
    assert {values["workers"]["value"] for values in trained} == {"2"}
    assert len((log / "stdout").read_text().splitlines()) == 4
    assert accuracy(runs, "newer") > 0.85


def test_a_torch_distributed_program(runs: Path) -> None:
    assert accuracy(runs, "plain") > 0.85
    assert (runs / "warm" / "out-0").read_text().splitlines() == ["warm start from model_epoch_final.pth"]
    assert accuracy(runs, "warm") >= accuracy(runs, "plain") - 0.02


def test_programs_that_know_folders_by_variables_only(runs: Path) -> None:
    start = torch.full((10, 64), 0.5)
    assert torch.equal(weights(runs / "by-variables", "model_epoch_1.pth")["weight"], start)
    # The training has its weights; what else the program made of its results stays where it was put.
    assert (runs / "by-variables" / "model" / "trained.pth").is_file()
    assert weights(runs / "only-results", "trained.pth")["weight"].shape == (10, 64)
