"""A checkpoint is complete or it is not there."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dlmesh_sdk import checkpoints
from dlmesh_sdk.fabric_training import State
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.monitor import PytorchMonitor


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
    checkpoints.prune(tmp_path, keep=2, step=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000020", "step-0000000100"]


def test_later_ones_that_were_passed_over_push_no_new_one_out(tmp_path: Path) -> None:
    for step in (90, 100):
        write(tmp_path, step, world_size=2)
    made = [write(tmp_path, step) for step in (5, 10, 15)]
    checkpoints.prune(tmp_path, keep=2, step=15)
    assert checkpoints.newest_complete(tmp_path, world_size=1) == made[-1]
    assert not made[0].exists()


def test_what_is_kept_of_a_scheduler_is_what_it_was(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 4], 0.5)
    state = State(model, optimizer)
    kept = checkpoints.Checkpoints(tmp_path, Gang(0, 0, 1, torch.device("cpu")))
    for step in (1, 2):
        kept.save(state, step, scheduler=scheduler.state_dict())
        kept.finish()
        _, found = kept.load_newest(state)
        assert found["scheduler"]["milestones"] == {2: 2, 4: 1}
        scheduler.load_state_dict(found["scheduler"])


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
from dlmesh_sdk.gang import join
from dlmesh_sdk.checkpoints import Checkpoints

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
    paths = os.pathsep.join(str(Path(checkpoints.__file__).parents[2] / name) for name in ("sdk", "workerkit"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(stage)],
        env=os.environ | {"PYTHONPATH": paths},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 2 could not be written: [Errno 28] No space left on device" in done.stdout
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-0000000001"]


# Where a full disk (or a broken one) can meet a checkpoint: the call that fails, and for which argument.
PLACES: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "folder": (Path, "mkdir", lambda path: ".draft-" in str(path)),
    "file": (torch, "save", lambda content: True),
    "flush": (os, "fsync", lambda descriptor: True),
    "manifest": (Path, "write_text", lambda path: path.name == checkpoints.MANIFEST),
    "rename": (Path, "rename", lambda path: path.name.startswith(".draft-")),
}


def full(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meant: Callable[[Any], bool]) -> None:
    whole = getattr(owner, name)

    def fails(first: Any, *others: Any, **named: Any) -> Any:
        if meant(first):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(first, *others, **named)

    monkeypatch.setattr(owner, name, fails)


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_anywhere_costs_only_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    model = torch.nn.Linear(2, 1)
    state = State(model, torch.optim.SGD(model.parameters(), 0.1))
    kept = checkpoints.Checkpoints(tmp_path, Gang(0, 0, 1, torch.device("cpu")))
    kept.save(state, 1, note="first")
    kept.finish()
    with monkeypatch.context() as patch:
        full(patch, *PLACES[place])
        kept.save(state, 2)
        kept.finish()
    assert capsys.readouterr().out == (
        "the checkpoint of step 2 could not be written: [Errno 28] No space left on device\n"
    )
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-0000000001"]
    assert kept.load_newest(state) == (1, {"note": "first"})
    # There is space again.
    kept.save(state, 3)
    kept.finish()
    assert kept.load_newest(state)[0] == 3


def test_older_ones_that_cannot_be_removed_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(2, 1)
    state = State(model, torch.optim.SGD(model.parameters(), 0.1))
    kept = checkpoints.Checkpoints(tmp_path, Gang(0, 0, 1, torch.device("cpu")), keep=1)
    kept.save(state, 1)
    kept.finish()
    full(monkeypatch, shutil, "rmtree", lambda path: path.name == "step-0000000001")
    kept.save(state, 2)
    kept.finish()
    assert capsys.readouterr().out == (
        "checkpoints before step 2 could not be removed: [Errno 28] No space left on device\n"
    )
    assert kept.load_newest(state)[0] == 2


def test_a_full_disk_that_takes_no_line_either_costs_only_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 1)
    state = State(model, torch.optim.SGD(model.parameters(), 0.1))
    kept = checkpoints.Checkpoints(tmp_path, Gang(0, 0, 1, torch.device("cpu")))
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "log"))
    with Path("/dev/full").open("w") as disk, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", disk)
        patch.setattr(sys, "stderr", disk)
        monitor = PytorchMonitor(2)
        full(patch, *PLACES["file"])
        kept.save(state, 1)
        kept.finish()
        assert list((tmp_path / "steps").iterdir()) == []
        full(patch, Path, "mkdir", lambda path: "log" in str(path))
        monitor.train(1, 0.5)
        monitor.close()
        # There is space again, for what waits to be written when it is closed.
        with Path("/dev/null").open("w") as empty:
            os.dup2(empty.fileno(), disk.fileno())
    kept.save(state, 2)
    kept.finish()
    assert kept.load_newest(state)[0] == 2


# Two workers of which each has a part, and then the second one has no space for its own.
DIVIDED = """
import errno, sys
import torch
from dlmesh_sdk.gang import join
from dlmesh_sdk.checkpoints import Checkpoints

gang = join()

class Divided:
    checkpoint_engine = None
    value = 0
    def zero_optimization_stage(self):
        return 2
    def save_checkpoint(self, folder, *, tag, client_state, save_latest):
        self.checkpoint_engine.save({"value": self.value, **client_state}, f"{folder}/{tag}/{gang.rank}.pt")
    def load_checkpoint(self, folder, tag):
        content = torch.load(f"{folder}/{tag}/{gang.rank}.pt", weights_only=True)
        self.value = content["value"]
        return folder, {"state": content["state"]}

def no_space(content, path):
    raise OSError(errno.ENOSPC, "No space left on device")

engine, checkpoints, whole = Divided(), Checkpoints(sys.argv[1], gang), torch.save
for step in (1, 2, 3):
    torch.save = no_space if step == 2 and gang.rank == 1 else whole
    engine.value = 10 * step + gang.rank
    checkpoints.save(engine, step)
    checkpoints.finish()
    gang.barrier()
    print(checkpoints.load_newest(engine)[0], engine.value, flush=True)
gang.leave()
"""


@pytest.mark.slow
def test_what_one_worker_could_not_write_is_no_checkpoint_for_any(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DIVIDED, str(tmp_path)],
                env=os.environ | told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    outputs = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    failure = "the checkpoint of step 2 could not be written: [Errno 28] No space left on device"
    # DeepSpeed says what it found on the machine, in lines that begin with a time.
    said = [[line for line in output.splitlines() if not line.startswith("[")] for output, _ in outputs]
    assert said == [["1 10", failure, "1 10", "3 30"], ["1 11", "1 11", "3 31"]]
