"""kill -9 of every process of the platform while it is needed: the main job still finishes, nothing is doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import held_out, left_by_attempts

pytestmark = [pytest.mark.platform, pytest.mark.slow]

# What a service starts: whose child it is, and what its command line has in it.
CHILDREN = {
    "warm-pool": ("scheduling", "scheduling_service.engines.local.zygote"),
    "triton": ("inference", "tritonserver"),
}
RECOVERY_SECONDS = 20.0


def find(platform: RunningPlatform, name: str) -> int | None:
    """Process id of a service, Envoy, Triton or the warm pool; None while it is away."""
    pids = platform.pids()
    if name not in CHILDREN:
        return pids.get(name)
    # Of the service's own children only: keepers and ranks are forks of the pool and have its command line, too.
    service, mark = CHILDREN[name]
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pids[service]).children() if service in pids else ():
            if any(mark in part for part in process.cmdline()):
                return process.pid
    return None


def kill(platform: RunningPlatform, name: str) -> int:
    """SIGKILL as soon as it runs; the process id."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while (victim := find(platform, name)) is None:
        assert time.monotonic() < deadline, f"{name} does not run"
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    return victim


def await_successor(platform: RunningPlatform, name: str, victim: int) -> None:
    """Until another process does its work."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while find(platform, name) in (victim, None):
        assert time.monotonic() < deadline, f"{name} was not started again"
        time.sleep(0.05)


@contextmanager
def killing(platform: RunningPlatform, names: Sequence[str], killed: list[str]) -> Iterator[None]:
    """Kill `names` one after the other beside what the block does; the names are noted in `killed`."""
    errors: list[BaseException] = []
    victims: list[tuple[str, int]] = []
    over = threading.Event()

    def run() -> None:
        try:
            for name in names:
                if over.is_set():
                    return
                victims.append((name, kill(platform, name)))
                killed.append(name)
                time.sleep(0.2)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(RECOVERY_SECONDS + 5)
    if errors:
        raise errors[0]
    for name, victim in victims:
        await_successor(platform, name, victim)


def when_healthy(client: Client, action: Callable[[], object]) -> None:
    """Start something once every service answers again: a refused POST is the caller's to repeat, not ours to test."""
    client.until(lambda: client.request("GET", "/healthz").ok, seconds=30)
    action()


def test_the_main_job_survives(platform: RunningPlatform, admin: Client) -> None:
    job = MainJob(admin, "digits", prefix="chaos", epochs=30, seconds=240)
    killed: list[str] = []

    job.create_dataset()
    with killing(platform, ["datasets", "scheduling"], killed):
        job.await_dataset()
    when_healthy(admin, job.create_model)
    job.start_training()
    admin.until(lambda: (job.training().get("progress") or 0) > 0, seconds=60)
    victims = ["training", "scheduling", "gateway", "envoy", "models", "warm-pool", "tuning", "datasets", "inference"]
    with killing(platform, victims, killed):
        job.await_training()
    when_healthy(admin, job.start_validation)
    with killing(platform, ["training", "scheduling"], killed):
        validation = job.await_validation()
    when_healthy(admin, job.create_inference)
    images = held_out(platform)
    when_healthy(admin, lambda: job.start_prediction(images, "chaos-ten"))
    with killing(platform, ["triton", "inference"], killed):
        predictions = job.await_prediction("chaos-ten")

    assert set(victims) <= set(killed), "the training was over before all were killed"
    assert validation.top1 >= 0.95
    assert sorted(prediction.image for prediction in predictions) == sorted(image.name for image in images)
    # Nothing was doubled: one training, one application for each thing, and no attempt but the first.
    assert admin.get("/models/chaos/trainingnames") == ["first"]
    assert len(admin.get("/models/chaos/validations")) == 1
    applications = [each for each in admin.get("/scheduler/applications") if "chaos" in str(each)]
    assert len({each["applicationid"] for each in applications}) == len(applications)
    assert [each["state"] for each in applications] == ["FINISHED"] * len(applications)
    ids = {each["applicationid"] for each in applications}
    repeated = [path.parent.name for path in (platform.home / "jobs").glob("*/attempt-2") if path.parent.name in ids]
    assert repeated == [], "\n".join(left_by_attempts(platform.home, job_id) for job_id in repeated)
