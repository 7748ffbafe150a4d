"""Whatever programs leave in the folders of their job, its run ends, and no other waits for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.jobs import JobFacts
from servicekit.reconcile import Next
from training_fakes import FakeJobs, make_training
from training_service.domain.metrics import MetricPoint, SpoolPlace
from training_service.domain.runs import Status
from training_service.settings import TrainingSettings
from training_service.storage import MIGRATIONS, metric_spool
from training_service.storage.metric_spool import DiskMetricSpool
from training_service.storage.metrics import SqlMetrics
from training_service.storage.runs import SqlTrainings
from training_service.storage.workspace import DiskWorkspace
from training_service.usecases.metrics import CollectMetrics
from training_service.usecases.reconcile import FollowJobs
from workerkit.spool import append_metrics


class Room:
    """The loop over trainings, step by step."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.database = Database(url, "training")
        self.trainings = SqlTrainings(self.database, lambda _: "")
        self.metrics, self.jobs = SqlMetrics(self.database), FakeJobs()
        self.step = self.new_loop()

    def new_loop(self) -> FollowJobs[Any]:
        collect = CollectMetrics(self.metrics, DiskMetricSpool())
        return FollowJobs(self.trainings, self.jobs, DiskWorkspace(self.home), TrainingSettings(), settle=collect)

    async def ended(self, name: str, attempts: int = 1) -> Path:
        """A training whose job has just ended; the folder of its newest attempt."""
        uid = name * 32
        directory = self.home / "jobs" / uid / f"attempt-{attempts}"
        for number in range(1, attempts + 1):
            directory.with_name(f"attempt-{number}").mkdir(parents=True)
        await self.trainings.add(make_training(uid=uid, job_id=uid, name=name, accepted=True))
        self.jobs.facts[uid] = JobFacts(uid, "FINISHED", run_directory=str(directory))
        return directory

    async def status(self, name: str) -> Status:
        found = await self.trainings.by_uid(name * 32)
        assert found is not None
        return found.status

    async def steps(self, name: str, series: str = "loss") -> list[tuple[int, int]]:
        """Attempt and step of the stored points."""
        points = await self.metrics.page(name * 32, series, 0, 100_000)
        return [(point.attempt, point.step) for point in points]


@pytest.fixture
async def room(tmp_path: Path, database_url: str) -> AsyncIterator[Room]:
    room = Room(tmp_path, database_url)
    await room.database.migrate(MIGRATIONS)
    yield room
    await room.database.close()


async def test_only_attempts_of_the_job_that_are_folders_are_read(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    newest = await room.ended("a", attempts=5)
    append_metrics(newest, {"loss": 0.5}, 5)
    for name in ("attempt-9999999999999999999999999", "attempt-6", "attempt-0", "attempt-007", "attempt-x"):
        newest.with_name(name).mkdir()
        append_metrics(newest.with_name(name), {"loss": 0.5}, 1)
    elsewhere = room.home / "elsewhere"
    elsewhere.mkdir()
    append_metrics(elsewhere, {"loss": 0.5}, 2)
    for number in (1, 2, 3):
        newest.with_name(f"attempt-{number}").rmdir()
    newest.with_name("attempt-2").symlink_to(elsewhere)
    newest.with_name("attempt-3").write_text("no folder")
    (newest.with_name("attempt-4") / "metrics.jsonl").mkdir()
    await room.step()
    assert await room.status("a") is Status.FINISHED
    assert await room.steps("a") == [(5, 5)]
    assert [number for number in range(1, 6) if f"metrics of attempt {number} " in caplog.text] == [2, 3]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OverflowError(), ValueError(), RecursionError()])
async def test_a_spool_that_cannot_be_read_costs_its_points(
    room: Room, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = await room.ended("a", attempts=2)
    append_metrics(newest, {"loss": 0.5}, 2)
    whole = metric_spool.read_metrics

    def broken(directory: Path, offset: int) -> Any:
        if directory != newest:
            raise error
        return whole(directory, offset)

    monkeypatch.setattr(metric_spool, "read_metrics", broken)
    await room.step()
    assert await room.status("a") is Status.FINISHED
    assert await room.steps("a") == [(2, 2)]


async def test_a_database_in_trouble_costs_no_points(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    append_metrics(await room.ended("a"), {"loss": 0.5}, 1)

    async def broken(points: Sequence[MetricPoint]) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(room.metrics, "add", broken)
        await room.step()
    assert await room.status("a") is Status.SUBMITTED
    await room.step()
    assert await room.status("a") is Status.FINISHED
    assert await room.steps("a") == [(1, 1)]


async def test_a_large_spool_is_read_in_parts_and_holds_up_nobody(room: Room) -> None:
    large, small = await room.ended("a"), await room.ended("b")
    append_metrics(small, {"loss": 0.5}, 1)
    with (large / "metrics.jsonl").open("w") as file:
        for step in range(7000):
            file.write(json.dumps({"step": step, "time": 0, "values": {"loss": 0.5}}) + "\n")
    assert await room.step() is Next.AT_ONCE
    assert (await room.status("a"), await room.status("b")) == (Status.SUBMITTED, Status.FINISHED)
    assert len(await room.steps("a")) == 2000
    assert await room.step() is Next.AT_ONCE
    # Killed: a new process begins with what nobody acknowledged, and doubles nothing.
    room.step = room.new_loop()
    passes = 1
    while await room.step() is Next.AT_ONCE:
        passes += 1
    assert passes == 4
    assert await room.status("a") is Status.FINISHED
    assert await room.steps("a") == [(1, step) for step in range(7000)]


async def test_what_was_delivered_is_not_read_again(tmp_path: Path) -> None:
    directory = tmp_path / "attempt-2"
    for number, acknowledged_lines in ((1, 2), (2, 1)):
        attempt = tmp_path / f"attempt-{number}"
        attempt.mkdir()
        for step in range(1, 4):
            append_metrics(attempt, {"loss": 0.5}, step)
        lines = (attempt / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (attempt / "metrics.offset").write_text(str(sum(map(len, lines[:acknowledged_lines]))))
    found: list[tuple[int, int]] = []
    place: SpoolPlace | None = SpoolPlace()
    while place is not None:
        points, place = await DiskMetricSpool().read("j", str(directory), place)
        found += [(point.attempt, point.step) for point in points]
    assert found == [(1, 3), (2, 2), (2, 3)]


@pytest.mark.parametrize("directory", ["/nowhere/attempt-1", "/", "/tmp"])
async def test_folders_that_have_gone_hold_no_points(directory: str) -> None:
    assert await DiskMetricSpool().read("j", directory, SpoolPlace()) == ([], None)
