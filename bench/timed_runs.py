"""Timed runs of one program, by the platform and by bare torchrun."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dlmesh_platform.endpoints import free_port
from dlmesh_platform.launch import RunningPlatform

# Of each run's steps, the first are left out: allocators and caches settle.
SKIPPED_STEPS = 20
# Names the program of a plain run to timed_main.py; a process that has it is none of the platform's.
PLAIN = "TIMED_PROGRAM"


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


class PlainRun:
    """Two ranks started by torchrun."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    def check(self) -> None:
        """RuntimeError with the last of what it printed when it has failed."""
        if self.process.poll():
            raise RuntimeError(f"torchrun failed:\n{self._output.read_text()[-3000:]}")


@contextmanager
def torchrun(notes: Notes, folder: Path, program: str = "program.py") -> Iterator[PlainRun]:
    """`program` in the folder of the platform's run, on two ranks, with its environment less the platform's job.

    When the block ends before the program does, it is ended.
    """
    folder.mkdir(parents=True)
    arguments = list(notes.begin["argv"][1:])
    arguments[arguments.index("--train_dir") + 1] = str(folder)
    own = ("DLMESH_JOB", "DLMESH_SUPERVISED", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "NODE_RANK")
    environment = {key: value for key, value in notes.begin["environment"].items() if not key.startswith(own)}
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port(set()))]
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "main.py", *arguments],
            cwd=notes.begin["cwd"],
            env={**environment, PLAIN: program},
            stdout=file,
            stderr=file,
        )
    run = PlainRun(process, output)
    try:
        yield run
        run.check()
    finally:
        process.terminate()
        process.wait()


def processes_of(home: Path, *, plain: bool) -> list[psutil.Process]:
    """All processes of plain programs, or of the platform of `home` with its jobs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            names_home = any(str(home) in text for text in (*process.cmdline(), *environment.values()))
            if names_home and (PLAIN in environment) == plain:
                found.append(process)
    return found


def pause(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def proceed(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
