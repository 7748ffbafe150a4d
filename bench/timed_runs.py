"""Timed runs of one program, by the platform and by bare torchrun."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dlmesh_platform.endpoints import free_port
from dlmesh_platform.launch import RunningPlatform
from report import Row, announce

TURN_SECONDS = 10.0
# After a stop the step that was under way is no whole one, and caches are cold.
SETTLING_STEPS = 3
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

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, output: Path) -> None:
        self._process, self._folder, self._output = process, folder, output

    def first_step(self) -> float:
        """Wait until its first step has ended; when that was. RuntimeError with the last of what it printed when it
        ends before."""
        while True:
            has_ended = self._process.poll() is not None
            attempts = read_notes(self._folder) if (self._folder / "timed.jsonl").exists() else []
            if attempts and attempts[0].steps:
                return attempts[0].steps[0]
            if has_ended:
                raise RuntimeError(f"torchrun failed:\n{self._output.read_text()[-3000:]}")
            time.sleep(0.1)


@contextmanager
def torchrun(notes: Notes, folder: Path, program: str = "program.py") -> Iterator[PlainRun]:
    """`program` in the folder of the platform's run, on two ranks, with its environment less the platform's job.

    It is ended with the block.
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
    try:
        yield PlainRun(process, folder, output)
    finally:
        process.terminate()
        process.wait()


def rates_in_turns(
    platform: RunningPlatform, ours: Path, program: str = "program.py", *, turns: int
) -> list[tuple[float, float]]:
    """Steps per second of the platform's training in `ours` and of `program` under torchrun, in each pair of turns.

    Neither may come to its end. Both are up all the time, and while one runs all processes of the other are stopped, so
    that what a machine does to both is not taken for a difference between them. The platform's services are stopped
    with its ranks: their work counts against it alone.
    """
    bare = platform.home / "in-turns"
    with torchrun(read_notes(ours)[0], bare, program) as plain:
        plain.first_step()
        try:
            return [_pair_of_turns(platform.home, ours, bare, turn, turns) for turn in range(turns)]
        finally:
            for is_plain in (False, True):
                _proceed(_processes_of(platform.home, plain=is_plain))


def _pair_of_turns(home: Path, ours: Path, bare: Path, turn: int, turns: int) -> tuple[float, float]:
    if turn % 5 == 0:
        announce(f"steps/s: turns {turn + 1} to {min(turn + 5, turns)} of {turns}, by the platform and without")
    rates = {}
    # The first of a pair changes, so that a machine that gets slower favours neither.
    for is_plain in (False, True) if turn % 2 else (True, False):
        _pause(_processes_of(home, plain=not is_plain))
        _proceed(_processes_of(home, plain=is_plain))
        began = time.time()
        time.sleep(TURN_SECONDS)
        steps = [at for at in read_notes(bare if is_plain else ours)[-1].steps if at >= began][SETTLING_STEPS:]
        rates[is_plain] = (len(steps) - 1) / (steps[-1] - steps[0])
    return rates[False], rates[True]


def steps_row(what: str, pairs: Sequence[tuple[float, float]], against: str) -> Row:
    """The line of the report for what `rates_in_turns` found."""
    rate, rate_bare = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    low, ratio, high = statistics.quantiles([mine / other for mine, other in pairs], n=4)
    return Row(
        what,
        f"{rate:.2f}",
        f"{rate_bare:.2f} {against}",
        f"{ratio:.3f} (quartiles {low:.3f}, {high:.3f} of {len(pairs)} turns)",
        "at least 0.98",
        ratio >= 0.98,
    )


def _processes_of(home: Path, *, plain: bool) -> list[psutil.Process]:
    """All processes of plain programs, or of the platform of `home` with its jobs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            names_home = any(str(home) in text for text in (*process.cmdline(), *environment.values()))
            if names_home and (PLAIN in environment) == plain:
                found.append(process)
    return found


def _pause(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def _proceed(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()
