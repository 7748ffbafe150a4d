"""No file of a program hides what the modules that it imports need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dlmesh_sdk

# Its own files may be called as ours are, also as the published modules that it does not use.
PROGRAM = """
import torch
from fabric_model import FabricModel

def getDatasets():
    x = torch.randn(24, 3)
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    return data, data

net = torch.nn.Linear(3, 2)
loss = torch.nn.functional.cross_entropy
FabricModel(net, getDatasets, loss, torch.optim.SGD(net.parameters(), lr=0.1)).train(1, 8, 1)
"""


def test_a_program_may_call_its_files_as_it_likes(tmp_path: Path) -> None:
    inner = [path.stem for path in Path(dlmesh_sdk.__path__[0]).glob("*.py") if path.stem != "__init__"]
    assert "checkpoints" in inner
    for name in [*inner, "callbacks", "monitor_pth", "pth_parameter_mgr", "inference_helper"]:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is a file of the program')\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH")}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "train" / "model_epoch_final.pth").is_file()
