"""A plateau is judged by the loss of all workers, also in an epoch that was interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Two workers; a training without a stop, and one that is stopped in the middle of an epoch and goes on.
PROGRAM = """
import os, signal
import torch
from dlmesh_sdk import deepspeed_on_cpu
deepspeed_on_cpu.install()
import deepspeed
from dlmesh_sdk.gang import join
from dlmesh_sdk.training_loop import Task, cross_entropy, train
from testkit.gangs import forked_gang

Plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
judge = Plateau.step

def run(rank, folder, stop):
    def step(self, mean, *others):
        with open(f"means-{folder}-{rank}", "a") as file:
            file.write(f"{float(mean)!r}\\n")
        judge(self, mean, *others)
    Plateau.step = step
    gang = join(seed=7)
    inputs = torch.randn(48, 6)
    data = torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long())
    class Stopping(torch.utils.data.Dataset):
        asked = 0
        def __len__(self): return len(data)
        def __getitem__(self, index):
            self.asked += 1
            if stop and rank == 1 and self.asked == 30:
                os.kill(os.getpid(), signal.SIGTERM)
            return data[index]
    train(Task(torch.nn.Linear(6, 2), Stopping(), data, cross_entropy), gang, folder)

for folder, stop in (("whole", False), ("stopped", True), ("stopped", False)):
    codes = forked_gang(2, lambda rank: run(rank, folder, stop))
    assert codes == ([143, 143] if stop else [0, 0]), (folder, stop, codes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_an_interrupted_epoch_is_judged_as_a_whole_one(tmp_path: Path, stage: int) -> None:
    policy = {"lrpolicy": "reducelronplateau", "patience": 0, "factor": 0.5, "threshold": 0.2}
    told = {"batch_size": 8, "seed": 3, "hyperparameter": {"learningrate": 0.1, "epoch": 4, **policy}}
    (tmp_path / "parameters.json").write_text(json.dumps(told))
    (tmp_path / "ds_config.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"DLMESH_PARAMETERS": str(tmp_path / "parameters.json"), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # 30 samples are not a whole number of epochs of 24 for each worker.
    assert "Stopped after iteration 7 of 24" in done.stdout or "Stopped after iteration 8 of 24" in done.stdout
    means = {
        (folder, rank): [float(line) for line in (tmp_path / f"means-{folder}-{rank}").read_text().split()]
        for folder in ("whole", "stopped")
        for rank in (0, 1)
    }
    assert len(means["whole", 0]) == 4
    for (folder, rank), found in means.items():
        assert found == pytest.approx(means["whole", 0], abs=1e-6), (folder, rank)
    whole, stopped = (
        torch.load(tmp_path / folder / "model_epoch_final.pth", weights_only=True) for folder in ("whole", "stopped")
    )
    for name, expected in whole.items():
        torch.testing.assert_close(stopped[name], expected, atol=1e-6, rtol=1e-5)
