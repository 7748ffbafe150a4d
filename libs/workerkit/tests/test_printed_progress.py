"""Programs that only print are followed by what they print; those that report by themselves are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from workerkit import PrintedProgress, Reporter, printed_progress
from workerkit.spool import read_metrics, read_report

PROGRAM = """
import os, subprocess, sys
from workerkit import PrintedProgress

with PrintedProgress.of_this_process():
    print("Total iterations: 20", flush=True)
    subprocess.run([sys.executable, "-c", '''
for step in (5, 10):
    print(f"Timestamp 1700000000000, Iteration {step}")
    print(f"Iteration {step}: tag train_loss, simple_value {1 / step}")
    print(f"[rank 0] Iteration {step}: tag test_accuracy, simple_value 0.{step}")
print("Iteration 11: tag train_loss, simple_value nothing")
print("Timestamp 1700000000000, Iteration 12")
'''])
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_JOB_ID", "j1")
    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path))
    for name in ("RANK", "DLMESH_SCHEDULING_ADDRESS", "DLMESH_TRAINING_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def points(folder: Path) -> list[tuple[str, int, float]]:
    return [(point.series, point.step, point.value) for point in read_metrics(folder, 0)[0]]


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_program_and_its_children_print_is_reported(tmp_path: Path, code: int) -> None:
    with (tmp_path / "rank-0.out").open("w") as output:
        output.write("Iteration 1: tag train_loss, simple_value 9\n")
        output.flush()
        command = [sys.executable, "-c", PROGRAM, str(code)]
        done = subprocess.run(command, stdout=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False)
    assert done.returncode == code
    # What an earlier attempt left in the file is not this one's.
    assert points(tmp_path) == [
        ("train_loss", 5, 0.2),
        ("test_accuracy", 5, 0.5),
        ("train_loss", 10, 0.1),
        ("test_accuracy", 10, 0.1),
    ]
    assert read_report(tmp_path)["progress"] == {"done": 12.0, "total": 20.0, "phase": "training"}


def test_a_program_that_reports_by_itself_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "rank-0.out"
    output.touch()
    with output.open("rb") as read, output.open("a") as printed, PrintedProgress(read):
        print("Total iterations: 4\nIteration 3: tag train_loss, simple_value 0.25", file=printed, flush=True)
        Reporter(tmp_path).metrics({"train_loss": 0.2501}, 3)
    assert points(tmp_path) == [("train_loss", 3, 0.2501)]
    assert read_report(tmp_path) == {}


def test_of_many_lines_the_newest_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_progress, "MAX_STEPS", 3)
    monkeypatch.setattr(printed_progress, "MAX_SERIES", 2)
    output = tmp_path / "rank-0.out"
    lines = [f"Iteration {step}: tag {tag}, simple_value {step}" for step in range(1, 9) for tag in "abc"]
    output.write_text("\n".join([*lines, "Iteration 9: tag a, simple_value 9 without an end"]))
    with output.open("rb") as read, PrintedProgress(read):
        pass
    found = points(tmp_path)
    assert found == [(tag, step, float(step)) for step in (6, 7, 8) for tag in "ab"]


def test_outside_a_job_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLMESH_JOB_DIR")
    output = tmp_path / "rank-0.out"
    output.write_text("Iteration 3: tag train_loss, simple_value 0.25\n")
    with output.open("rb") as read, PrintedProgress(read):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.out"]
