"""A checkpoint is complete or it is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from gang import Gang


def write(steps: Path, step: int, content: str = "state", world_size: int = 1) -> Path:
    draft = steps / f".draft-{step}"
    (draft / "state").mkdir(parents=True)
    (draft / "state" / "rank0.pt").write_text(content)
    final = steps / f"step-{step:010d}"
    checkpoints.publish(draft, final, {"step": step, "world_size": world_size})
    return final


def test_newest_is_chosen_and_older_are_pruned(tmp_path: Path) -> None:
    made = [write(tmp_path, step) for step in (5, 20, 100)]
    assert checkpoints.newest_complete(tmp_path) == made[-1]
    checkpoints.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000020", "step-0000000100"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state" / "rank0.pt").write_text("stale"),
        lambda folder: (folder / "state" / "rank0.pt").write_text("longer than before"),
        lambda folder: (folder / "state" / "rank0.pt").unlink(),
        lambda folder: (folder / checkpoints.MANIFEST).unlink(),
        lambda folder: (folder / checkpoints.MANIFEST).write_text('{"fil'),
    ],
    ids=["changed", "grown", "lost", "unsealed", "half a manifest"],
)
def test_damaged_one_is_passed_over(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    damage(newer)
    assert checkpoints.newest_complete(tmp_path) == older
    checkpoints.discard_damaged(tmp_path)
    assert list(tmp_path.iterdir()) == [older]


def test_draft_of_a_killed_run_is_no_checkpoint(tmp_path: Path) -> None:
    gang = Gang(0, 0, 1, torch.device("cpu"))
    (tmp_path / "steps" / ".draft-0000000007" / "state").mkdir(parents=True)
    (tmp_path / ".draft-model_epoch_1.pth").touch()
    assert checkpoints.newest_complete(tmp_path / "steps") is None
    checkpoints.Checkpoints(tmp_path, gang)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["steps"]


def test_same_step_written_again_keeps_the_complete_one(tmp_path: Path) -> None:
    final = write(tmp_path, 3, "first")
    assert write(tmp_path, 3, "again") == final
    assert (final / "state" / "rank0.pt").read_text() == "first"
    (final / checkpoints.MANIFEST).unlink()
    write(tmp_path, 3, "again")
    assert (final / "state" / "rank0.pt").read_text() == "again"


def test_another_number_of_workers_is_passed_over(tmp_path: Path) -> None:
    one = write(tmp_path, 1, world_size=1)
    write(tmp_path, 2, world_size=2)
    assert checkpoints.newest_complete(tmp_path, world_size=1) == one
    assert checkpoints.newest_complete(tmp_path, world_size=3) is None


PROGRAM = """
import errno, sys
import torch
from gang import join
from checkpoints import Checkpoints

folder, stage = sys.argv[1], int(sys.argv[2])
gang = join()
import deepspeed

model = torch.nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters())
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
          "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

def step():
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()

checkpoints = Checkpoints(folder, gang, interval_steps=3)
assert [checkpoints.due(number) for number in (1, 2, 3, 6)] == [False, False, True, True]
step()
before = model.weight.detach().clone()
checkpoints.save(engine, 1, note="first")
step()
assert not torch.equal(model.weight, before)
checkpoints.finish()
whole = torch.save

def no_space(content, path):
    raise OSError(errno.ENOSPC, "No space left on device")

torch.save = no_space
checkpoints.save(engine, 2)
checkpoints.finish()
torch.save = whole
assert checkpoints.load_newest(engine) == (1, {"note": "first"})
assert torch.equal(model.weight, before)
checkpoints.write_weights(engine, "model_epoch_final.pth")
assert torch.equal(torch.load(f"{folder}/model_epoch_final.pth", weights_only=True)["weight"], before)
gang.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_it_holds_the_moment_of_the_save_and_a_full_disk_costs_only_itself(tmp_path: Path, stage: int) -> None:
    paths = os.pathsep.join(str(Path(checkpoints.__file__).parents[1] / name) for name in ("sdk", "workerkit"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(stage)],
        env=os.environ | {"PYTHONPATH": paths},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 2 could not be written: [Errno 28] No space left on device" in done.stdout
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-0000000001"]
