"""Moving means of batch normalization are those of all workers' shares."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import sys
import torch
from dlmesh_sdk.gang import join
from dlmesh_sdk.training_loop import Task, cross_entropy, train

gang = join(seed=7)
inputs = torch.randn(48, 6)
data = torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long())
model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
train(Task(model, data, data, cross_entropy), gang, sys.argv[1])
"""


def moving_mean(folder: Path, workers: int) -> torch.Tensor:
    """After two epochs of the same batches on so many workers: [6]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DLMESH_PARAMETERS": str(folder / "parameters.json")}
    out = folder / str(workers)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(out)],
            cwd=folder,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0] * workers, outputs
    found: torch.Tensor = torch.load(out / "model_epoch_final.pth", weights_only=True)["0.running_mean"]
    # The weights of an epoch have them, too; those of the last one were written before the test.
    last = torch.load(out / "model_epoch_2.pth", weights_only=True)["0.running_mean"]
    torch.testing.assert_close(last, found)
    return found


@pytest.mark.slow
def test_two_workers_have_the_moving_means_of_one(tmp_path: Path) -> None:
    told = {"batch_size": 8, "seed": 3, "checkpoint_interval_steps": 5, "hyperparameter": {"epoch": 2}}
    (tmp_path / "parameters.json").write_text(json.dumps(told))
    one, two = (moving_mean(tmp_path, workers) for workers in (1, 2))
    assert one.abs().max() > 0.05
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
