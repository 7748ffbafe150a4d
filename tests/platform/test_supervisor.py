"""The supervisor restarts what dies and leaves nothing behind, jobs in sessions of their own included."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from dlmesh_platform.endpoints import free_port, internal_addresses

TRIAL = Path(__file__).with_name("supervised_trial.py")


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def pids(home: Path) -> dict[str, int]:
    return json.loads((home / "run" / "supervisor.json").read_text())["processes"]


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture
def port() -> int:
    return free_port(set())


@pytest.fixture
def trial(tmp_path: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, TRIAL, tmp_path, str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    until(lambda: (tmp_path / "job.pid").exists() and (tmp_path / "job.pid").read_text() != "")
    yield process
    process.terminate()
    process.wait(15)
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_leaves_nothing_behind(trial: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    started = [*pids(tmp_path).values(), int((tmp_path / "job.pid").read_text())]
    began = time.monotonic()
    trial.send_signal(number)
    assert trial.wait(10) == 0
    assert time.monotonic() - began < 10
    assert all(map(gone, started))
    assert not (tmp_path / "run" / "supervisor.json").exists()


def test_a_killed_child_is_started_again(trial: subprocess.Popen[str], tmp_path: Path) -> None:
    before = pids(tmp_path)
    os.kill(before["envoy"], signal.SIGKILL)
    until(lambda: pids(tmp_path)["envoy"] != before["envoy"], 3)
    assert pids(tmp_path)["datasets"] == before["datasets"]
    trial.terminate()
    assert trial.wait(10) == 0


def test_children_end_with_a_killed_supervisor_and_jobs_with_the_next(
    trial: subprocess.Popen[str], tmp_path: Path, port: int
) -> None:
    services, job = pids(tmp_path), int((tmp_path / "job.pid").read_text())
    trial.kill()
    trial.wait()
    until(lambda: all(map(gone, services.values())))
    assert not gone(job)
    (tmp_path / "job.pid").unlink()
    with subprocess.Popen([sys.executable, TRIAL, tmp_path, str(port)], stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "ready\n"
        second.terminate()
        assert second.wait(10) == 0
    assert gone(job)


def test_a_second_supervisor_of_a_home_is_refused(trial: subprocess.Popen[str], tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "dlmesh_platform.cli", "serve"],
        env={**os.environ, "DLMESH_HOME": str(tmp_path), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"in use by another dlmesh (process {trial.pid})" in second.stderr


def test_a_taken_public_port_is_named(trial: subprocess.Popen[str], tmp_path: Path, port: int) -> None:
    other = subprocess.run(
        [sys.executable, "-m", "dlmesh_platform.cli", "serve"],
        env={**os.environ, "DLMESH_HOME": str(tmp_path / "other"), "DLMESH_HTTP_PORT": str(port), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 1
    assert f"port {port} is in use" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("service", "variable", "value", "allowed"),
    [
        ("scheduling", "DLMESH_SLOTS", "many", "a whole number from 1"),
        ("tuning", "DLMESH_LOG_LEVEL", "loud", "DEBUG, INFO"),
        ("tuning", "DLMESH_DATABASE_URL", "mysql://a/b", "sqlite, postgresql"),
        ("tuning", "DLMESH_DATABASE_URL", "nowhere", "sqlite:///FILE"),
    ],
)
def test_a_setting_that_is_wrong_ends_a_service_with_one_line(
    tmp_path: Path, service: str, variable: str, value: str, allowed: str
) -> None:
    environment = {**os.environ, "DLMESH_HOME": str(tmp_path), variable: value}
    command = [sys.executable, "-P", "-m", f"{service}_service"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{service}: {variable}: ")
    assert allowed in line


def test_internal_addresses_are_kept(tmp_path: Path) -> None:
    first = internal_addresses(tmp_path, {})
    assert internal_addresses(tmp_path, {}) == first
    assert len(set(first.values())) == 7
    assert internal_addresses(tmp_path, {"DLMESH_MODELS_ADDRESS": "127.0.0.1:7001"})["models"] == "127.0.0.1:7001"
