"""What a monitor reports is what TensorBoard draws."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from monitor_pth import PytorchMonitor
from testkit.tensorboard import read_curves
from workerkit.spool import read_metrics, read_report, warning_of


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose monitors report every iteration."""
    monkeypatch.setattr("dlmesh_sdk.monitor.PRINT_SECONDS", 0.0)
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "log"))
    monkeypatch.delenv("RANK", raising=False)
    attempt(monkeypatch, tmp_path, 1)
    return tmp_path


def attempt(monkeypatch: pytest.MonkeyPatch, run: Path, number: int) -> None:
    """From now on it is this attempt of a job whose platform does not answer."""
    directory = run / f"attempt-{number}"
    directory.mkdir()
    for name, value in {"ID": "j", "DIR": str(directory), "ATTEMPT": str(number)}.items():
        monkeypatch.setenv(f"DLMESH_JOB_{name}", value)


def test_curves_are_those_of_the_platform_and_go_on_after_a_restart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PytorchMonitor(6) as monitor:
        for step in range(1, 5):
            monitor.train(step, torch.tensor(1.0 / step), step / 10, learning_rate=0.01, samples=64)
        monitor.test(4, 0.5, 0.75, map50=0.25)
    # Killed, and again from the checkpoint of step 2.
    attempt(monkeypatch, run, 2)
    with PytorchMonitor(6) as monitor:
        for step in range(3, 7):
            monitor.train(step, 10.0 + step, samples=64)
    spooled: dict[str, dict[int, float]] = {}
    for number in (1, 2):
        for point in read_metrics(run / f"attempt-{number}", 0)[0]:
            spooled.setdefault(point.series, {})[point.step] = point.value
    drawn = {
        tag: {step: value for step, value, _ in points} for tag, points in read_curves(run / "log" / "curves").items()
    }
    assert drawn["train_loss"] == {
        **{1: 1.0, 2: 0.5},
        **{step: 10.0 + step for step in range(3, 7)},
    }
    assert drawn["train_accuracy"] == pytest.approx({1: 0.1, 2: 0.2})
    assert drawn["test_map50"] == {}
    for tag, points in drawn.items():
        assert points == pytest.approx({step: spooled[tag][step] for step in points}, rel=1e-6)
    costs = {"learning_rate", "memory_bytes", "samples_per_second", "steps_per_second", "data_wait_fraction"}
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_map50", *costs} <= set(spooled)
    assert 1e7 < spooled["memory_bytes"][6] < 1e12
    # 64 samples a step.
    rates = spooled["samples_per_second"]
    assert {step: spooled["steps_per_second"][step] * 64 for step in (2, 6)} == pytest.approx(
        {step: rates[step] for step in (2, 6)}
    )


def test_a_loss_that_is_no_number_is_reported_and_left_out(run: Path) -> None:
    with PytorchMonitor(2) as monitor:
        monitor.train(1, torch.tensor(0.5), 0.25)
        monitor.train(2, torch.tensor(float("nan")), 0.125)
    points = read_metrics(run / "attempt-1", 0)[0]
    assert [(point.step, point.value) for point in points if point.series == "train_loss"] == [(1, 0.5)]
    assert [point.step for point in points if point.series == "train_accuracy"] == [1, 2]
    assert warning_of(read_report(run / "attempt-1")) == "train_loss is not finite since iteration 2"


def test_without_a_place_nothing_is_written_and_other_workers_write_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with PytorchMonitor(1) as monitor:
        monitor.train(1, 0.5)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOG_DIR")
    with PytorchMonitor(1) as monitor:
        monitor.train(1, 0.5)
    assert not (run / "log").exists()


def test_a_place_that_cannot_be_written_costs_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "log").touch()
    with PytorchMonitor(3) as monitor:
        for step in range(1, 4):
            monitor.train(step, 0.5)
    captured = capsys.readouterr()
    assert captured.err.count("TensorBoard files are not written any more") == 1
    assert captured.out.count("tag train_loss") == 3
    assert len({point.step for point in read_metrics(run / "attempt-1", 0)[0]}) == 3


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a full disk, a file that would grow beyond `size` bytes is not written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_costs_a_line_and_what_was_written_stays(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLMESH_JOB_ID")
    with PytorchMonitor(200) as monitor:
        monitor.train(1, 0.5)
        (file,) = (run / "log" / "curves").iterdir()
        with no_file_beyond(file.stat().st_size + 20):
            for step in range(2, 5):
                monitor.train(step, 0.5)
    captured = capsys.readouterr()
    assert captured.err.count("TensorBoard files are not written any more") == 1
    assert captured.out.count("tag train_loss") == 4
    assert [step for step, *_ in read_curves(run / "log" / "curves")["train_loss"]] == [1]


def test_a_point_costs_the_step_next_to_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PytorchMonitor(300) as monitor:
        monitor.train(1, 0.5)
        begin = time.thread_time()
        for step in range(2, 302):
            monitor.train(step, 0.5, 0.5, learning_rate=0.1, samples=8)
        seconds = (time.thread_time() - begin) / 300
    # Once a second at most: a thousandth of the time.
    assert seconds < 0.001
