"""A trial with its real worker: what the program is told, and what becomes of what it reports."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from servicekit.identity import job_token
from servicekit.jobs import JobRequest
from testkit.services import SECRET
from training_room import Room
from trial_room import Value, read, start, stored

# Says as its losses what it was told, and leaves weights.
PROGRAM = """
import json, os, pathlib, sys
import pth_parameter_mgr, torch
from emetrics import EMetrics

config = json.loads(pathlib.Path("config.json").read_text())
assert pth_parameter_mgr.getTrainBatchSize() == config["batchsize"] == 8
model = torch.nn.Linear(1, 1)
optimizer = pth_parameter_mgr.getOptimizer(model)
assert type(optimizer).__name__ == config["solvertype"] == "SGD"
assert optimizer.param_groups[0]["lr"] == config["learningrate"]
for iteration in range(1, config["steps"] + 1):
    print(f"Iteration {iteration}: tag test_loss, simple_value {config['learningrate'] / iteration}", flush=True)
with EMetrics.open() as metrics:
    metrics.record(EMetrics.TEST_GROUP, config["steps"], {"loss": float(os.environ["SUBID"])})
folder = pathlib.Path(sys.argv[sys.argv.index("--train_dir") + 1])
torch.save(model.state_dict(), folder / "model_epoch_final.pth")
"""


def run(job: JobRequest, folder: Path, training_address: str) -> None:
    """Run the job's one rank as the engine would, to its end."""
    engine = {"DLMESH_JOB_ID": job.job_id, "DLMESH_JOB_ATTEMPT": "1", "DLMESH_JOB_DIR": str(folder)}
    engine |= {"DLMESH_JOB_TOKEN": job_token(SECRET, job.job_id), "DLMESH_TRAINING_ADDRESS": training_address}
    with (folder / "rank-0.out").open("wb") as output:
        done = subprocess.run(
            [sys.executable, *job.command[1:]],
            env={**os.environ, **job.environment, **engine, "OMP_NUM_THREADS": "1"},
            cwd=job.working_directory,
            text=True,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
async def test_a_program_reads_its_parameters_and_its_losses_are_read(room: Room, tmp_path: Path) -> None:
    code = Path(room.models.known["digits"].path)
    (code / "main.py").write_text(PROGRAM)
    room.models.known["digits"] = replace(room.models.known["digits"], hyperparameter={"solvertype": "SGD"})
    values = {"learningrate": Value(number=0.5), "batchsize": Value(whole=8)}
    trial_id = await start(room, number=3, hyperparameters=values, user_defined={"steps": Value(whole=4)})
    folder = tmp_path / "jobs" / trial_id / "attempt-1"
    folder.mkdir(parents=True)
    await asyncio.to_thread(run, room.jobs.requests[trial_id], folder, f"127.0.0.1:{room.client.port}")
    room.jobs.move(trial_id, "FINISHED", run_directory=str(folder))

    async def settled() -> bool:
        return bool((await read(room, trial_id, wait_seconds=10.0))[trial_id].is_settled)

    await room.until(settled)
    found = (await read(room, trial_id, series=["test_loss"], only_these_series=True, with_results=True))[trial_id]
    assert [(list(curve.steps), list(curve.values)) for curve in found.curves] == [
        ([1, 2, 3, 4], [0.5, 0.25, pytest.approx(0.5 / 3), 0.125])
    ]
    assert found.results == '[{"steps": 4, "loss": 3.0}]'
    assert (await stored(room, trial_id)).status == "FINISHED"
