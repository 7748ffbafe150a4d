"""The oldest way to import FabricModel, and what it takes along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from dlmesh_sdk import fabric_zip

# In an interpreter that has torch, and neither this repository nor DeepSpeed.
OLDEST = """
import os, sys
sys.path.append(os.environ["INSTALLED"])
sys.modules["deepspeed"] = None
sys.path.insert(0, os.path.join(os.environ["FABRIC_HOME"], "libs", "fabric.zip"))
from fabric_model import FabricModel
from callbacks import LoggerCallback
import torch

class EDTLoggerCallback(LoggerCallback):
    def log_train_metrics(self, loss, acc, completed_batch, worker=0):
        print("train", completed_batch, worker, 0 <= acc <= 100)
    def log_test_metrics(self, loss, acc, completed_batch, worker=0):
        print("test", completed_batch, worker)

def getDatasets():
    x = torch.randn(24, 3)
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    return data, data

net = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
loss = torch.nn.functional.cross_entropy
FabricModel(net, getDatasets, loss, optimizer, driver_logger=EDTLoggerCallback()).train(2, 8, 16)
print(sorted({sys.modules[name].__file__.split("fabric.zip")[0] for name in ("fabric_model", "workerkit")}))
"""


def test_programs_run_on_the_file_alone(tmp_path: Path) -> None:
    home = fabric_zip.make_fabric_home(tmp_path / "fabric")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DLMESH", "PYTHON"))}
    environment |= {"FABRIC_HOME": str(home), "INSTALLED": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", OLDEST],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "train 6 0 True" in lines
    assert [line for line in lines if line.startswith("test")] == ["test 3 0", "test 6 0"]
    assert lines[-1] == f"['{home}/libs/']"
    assert (tmp_path / "model" / "train" / "model_epoch_final.pth").is_file()


def test_it_holds_none_of_what_programs_bring(tmp_path: Path) -> None:
    fabric_zip.write_fabric_zip(tmp_path / "one.zip")
    fabric_zip.write_fabric_zip(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    assert {name for name in names if "/" not in name} == {"callbacks.py", "fabric_model.py"}
    assert {name.split("/")[0] for name in names if "/" in name} == {"dlmesh_sdk", "recordkit", "workerkit"}


def test_the_notebooks_name_is_the_same_class() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, fabric_model, callbacks, pyedt.fabric_model, pyedt.callbacks;"
            "print(json.dumps([pyedt.fabric_model.FabricModel is fabric_model.FabricModel,"
            " pyedt.callbacks.LoggerCallback is callbacks.LoggerCallback]))",
        ],
        text=True,
        capture_output=True,
        check=True,
    )
    assert json.loads(found.stdout) == [True, True]
