"""The whole platform - Envoy, seven services, Triton - started once a session for the tests that need it."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.client import USERS, Client
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import MainJob, write_digits


@pytest.fixture(scope="session")
def platform() -> Iterator[RunningPlatform]:
    """A running platform with a fresh home; digits lie in its data root as `digits`, ten of them in `held-out`."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        write_digits(home / "data" / "digits", home / "held-out")
        with launch(home) as running:
            yield running


@pytest.fixture
def admin(platform: RunningPlatform) -> Iterator[Client]:
    """The administrator's client."""
    client = platform.client()
    yield client
    client.close()


@pytest.fixture
def new_user(platform: RunningPlatform, admin: Client) -> Iterator[Callable[[str], Client]]:
    """`new_user("ann")` is the client of a new ordinary user whose name begins so."""
    clients = []

    def make(prefix: str) -> Client:
        name, password = f"{prefix}-{secrets.token_hex(3)}", secrets.token_urlsafe(12)
        admin.post(USERS, {"name": name, "password": password, "role": "user"})
        clients.append(platform.client(name, password))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def trained(platform: RunningPlatform) -> MainJob:
    """The main job up to a finished training named `first`, made once a session."""
    job = MainJob(platform.client(), "digits", prefix="shared")
    job.create_dataset()
    job.await_dataset()
    job.create_model()
    job.start_training()
    job.await_training()
    return job


def held_out(platform: RunningPlatform) -> list[Path]:
    """Ten images that were in no training; their names begin with the true digit."""
    return sorted((platform.home / "held-out").glob("*.png"))


def attempts_of(platform: RunningPlatform, run: Mapping[str, Any]) -> list[Path]:
    """The folders of the attempts of a training or validation, oldest first."""
    folders = (platform.home / "jobs" / run["appid"]).glob("attempt-*")
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("attempt-")))


def ranks_of(platform: RunningPlatform, run: Mapping[str, Any]) -> list[psutil.Process]:
    """The ranks of the newest attempt, the first one first."""
    newest = attempts_of(platform, run)[-1]
    keeper = json.loads((newest.with_name(f"keeper-{newest.name}") / "keeper.json").read_text())
    return psutil.Process(keeper["pid"]).children()


def left_by_attempts(home: Path, job_id: str) -> str:
    """What the attempts of a job left behind: why there was another one."""
    files = [file for file in sorted((home / "jobs" / job_id).rglob("*")) if file.name != "spec.json"]
    ends = [f"{file.relative_to(home)}: {file.read_text(errors='replace')[-1500:]}" for file in files if file.is_file()]
    log = (home / "log" / "scheduling.log").read_text(errors="replace")
    return "\n".join([*ends, *(line for line in log.splitlines() if job_id in line)])
