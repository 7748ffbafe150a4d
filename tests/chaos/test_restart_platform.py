"""The whole platform ends in the middle of a training - killed, then stopped in order - and starts again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dlmesh_platform.launch import RunningPlatform, start
from dlmesh_platform.main_job import MainJob, write_digits
from dlmesh_platform.processes import marked
from dlmesh_platform.supervisor import MARK
from testkit.platform import left_by_attempts

pytestmark = [pytest.mark.platform, pytest.mark.slow]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    write_digits(tmp_path / "data" / "digits", tmp_path / "held-out")
    yield tmp_path
    for process in marked(MARK, str(tmp_path)):
        with contextlib.suppress(psutil.Error):
            process.kill()


def job_on(platform: RunningPlatform) -> MainJob:
    return MainJob(platform.client(), "digits", epochs=10)


def attempts(home: Path, job_id: str) -> list[str]:
    return sorted(path.name for path in (home / "jobs" / job_id).glob("attempt-*"))


def start_training(job: MainJob, name: str) -> None:
    job.start_training(name)
    job.client.until(lambda: 0 < (job.training(name).get("progress") or 0) < 90, seconds=60)


def test_trainings_go_on(home: Path) -> None:
    platform = start(home)
    try:
        job = job_on(platform)
        job.create_dataset()
        job.await_dataset()
        job.create_model()

        start_training(job, "killed")
        platform.process.kill()
        platform.process.wait()
        platform = start(home)
        job = job_on(platform)
        detail = job.await_training(name="killed")
        # Its processes outlived the platform and were found again.
        assert attempts(home, detail["appid"]) == ["attempt-1"], left_by_attempts(home, detail["appid"])

        start_training(job, "stopped")
        began = time.monotonic()
        assert platform.stop() == 0
        assert time.monotonic() - began < 10
        assert marked(MARK, str(home)) == []
        platform = start(home)
        job = job_on(platform)
        detail = job.await_training(name="stopped")
        # It went on from its checkpoint in a second attempt.
        assert attempts(home, detail["appid"]) == ["attempt-1", "attempt-2"]
        assert job.client.get(f"{job.model_path}/trainingnames") == ["killed", "stopped"]
    finally:
        assert platform.stop() == 0
