"""Timed runs of one program, by the platform and by bare torchrun."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh_platform.launch import RunningPlatform

# Of each run's steps, the first are left out: allocators and caches settle.
SKIPPED_STEPS = 20


@dataclass(frozen=True)
class Notes:
    """What timed_main.py noted of one attempt of a run."""

    begin: dict[str, Any]
    steps: list[float]
    waits: list[tuple[float, float]]
    checkpoints: list[dict[str, float]]

    @property
    def steady(self) -> list[float]:
        return self.steps[SKIPPED_STEPS:]

    @property
    def steps_per_second(self) -> float:
        return (len(self.steady) - 1) / (self.steady[-1] - self.steady[0])

    @property
    def waiting_share(self) -> float:
        """Of the time of the steady steps, what was spent waiting for data."""
        first, last = self.steady[0], self.steady[-1]
        return sum(seconds for at, seconds in self.waits if first < at <= last) / (last - first)

    @property
    def checkpoint_share(self) -> float:
        """What steps took longer because of checkpoints, as a share of the time of all steps.

        Steps that ended while one was copied or written (and the first after it) against the mean of the others.
        """
        touched, others = [], []
        for begin, end in zip(self.steady, self.steady[1:], strict=False):
            is_touched = any(begin <= save["ended"] and end >= save["at"] for save in self.checkpoints)
            (touched if is_touched else others).append(end - begin)
        extra = sum(touched) - len(touched) * statistics.mean(others)
        return extra / sum((*touched, *others))


def read_notes(folder: Path) -> list[Notes]:
    """One for each attempt, oldest first."""
    attempts: list[Notes] = []
    for line in (folder / "timed.jsonl").read_text().splitlines():
        fact = json.loads(line)
        match fact["kind"]:
            case "start":
                attempts.append(Notes(fact, [], [], []))
            case "step":
                attempts[-1].steps.append(fact["at"])
            case "waited":
                attempts[-1].waits.append((fact["at"], fact["seconds"]))
            case "checkpoint":
                attempts[-1].checkpoints.append(fact)
    return attempts


def make_template(platform: RunningPlatform, name: str, builtin: str) -> None:
    """The template `builtin` as `name`, its program run by timed_main.py; its folder is data/`name`."""
    client = platform.client()
    folder = platform.home / "data" / name
    source = client.get(f"/modeltemplates/{builtin}")["path"]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("template.json", "__pycache__"))
    (folder / "main.py").rename(folder / "program.py")
    shutil.copy(Path(__file__).with_name("timed_main.py"), folder / "main.py")
    client.post("/modeltemplates", {"name": name, "path": name, "framework": "PyTorch"})


def torchrun(notes: Notes, folder: Path, program: str = "program.py") -> Notes:
    """`program` in the folder of the platform's run, on two ranks, with its environment less the platform's job."""
    folder.mkdir(parents=True)
    arguments = list(notes.begin["argv"][1:])
    arguments[arguments.index("--train_dir") + 1] = str(folder)
    own = ("DLMESH_JOB", "DLMESH_SUPERVISED", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "NODE_RANK")
    environment = {key: value for key, value in notes.begin["environment"].items() if not key.startswith(own)}
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            [sys.executable, *command, "main.py", *arguments],
            cwd=notes.begin["cwd"],
            env={**environment, "TIMED_PROGRAM": program},
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"torchrun failed:\n{(folder / 'output.txt').read_text()[-3000:]}")
    (bare,) = read_notes(folder)
    return bare
