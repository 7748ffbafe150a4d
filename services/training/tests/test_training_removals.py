"""A deleted run is gone at once, and what belongs to it whatever happens in between."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError, in_use
from servicekit.folders import remove_folder
from servicekit.jobs import JobFacts
from training_fakes import FakeJobs, make_training
from training_service.domain.metrics import MetricPoint
from training_service.domain.removals import Removal
from training_service.domain.runs import Status, Training
from training_service.storage import MIGRATIONS
from training_service.storage.metrics import SqlMetrics
from training_service.storage.removals import SqlRemovals
from training_service.storage.runs import SqlTrainings
from training_service.storage.workspace import DiskWorkspace
from training_service.usecases.removals import RemoveRuns

NOBODY = 65534


class Killed(BaseException):
    """Nothing catches a kill."""


class Room:
    """A finished training with files, a job and metrics."""

    def __init__(self, home: Path, url: str) -> None:
        self.database = Database(url, "training")
        self.trainings = SqlTrainings(self.database, lambda _: "")
        self.removals, self.metrics = SqlRemovals(self.database), SqlMetrics(self.database)
        self.workspace, self.jobs = DiskWorkspace(home), FakeJobs()
        self.training: Training = make_training(status=Status.FINISHED)
        self.folder = Path(self.workspace.folder(self.training))

    def step(self) -> RemoveRuns:
        """The loop's step in a process that has just begun."""
        return RemoveRuns(self.removals, self.jobs, self.workspace)

    async def assert_nothing_is_left(self) -> None:
        assert await self.removals.pending() == []
        assert await self.metrics.series(self.training.job_id) == []
        assert not self.folder.exists()
        assert set(self.jobs.deleted) == {self.training.job_id}


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path, f"sqlite:///{tmp_path / 'training.sqlite'}")
    await room.database.migrate(MIGRATIONS)
    await room.trainings.add(room.training)
    await room.metrics.add([MetricPoint(room.training.job_id, 1, "train_loss", 1, 0.5)])
    (room.folder / "checkpoints").mkdir(parents=True)
    (room.folder / "checkpoints" / "model_epoch_final.pth").write_text("weights")
    yield room
    await room.database.close()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["files", "job", "order"])
async def test_killed_anywhere_it_goes_on(room: Room, step: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where: tuple[Any, str] = {
        "files": (room.workspace, "remove"),
        "job": (room.jobs, "delete"),
        "order": (room.removals, "forget"),
    }[step]
    whole = getattr(*where)

    async def killed(*args: Any) -> None:
        if moment == "after":
            await whole(*args)
        raise Killed

    await room.trainings.remove(room.training.uid)
    # From here on it is nowhere to be seen, whole or in part.
    assert await room.trainings.find(room.training.model_uid, room.training.name) is None
    assert await room.trainings.by_uid(room.training.uid) is None
    with monkeypatch.context() as patch:
        patch.setattr(*where, killed)
        with pytest.raises(Killed):
            await room.step()()
    await room.step()()
    await room.assert_nothing_is_left()


async def test_a_new_run_of_the_name_is_not_touched(room: Room) -> None:
    await room.trainings.remove(room.training.uid)
    new = make_training(uid="n" * 32, job_id="n" * 32)
    await room.trainings.add(new)
    await room.metrics.add([MetricPoint(new.job_id, 1, "train_loss", 1, 0.5)])
    Path(room.workspace.folder(new)).mkdir()
    await room.step()()
    await room.assert_nothing_is_left()
    assert await room.trainings.find(new.model_uid, new.name) == new
    assert await room.metrics.series(new.job_id) == ["train_loss"]
    assert Path(room.workspace.folder(new)).is_dir()


async def test_what_cannot_be_removed_is_tried_again_and_holds_up_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_training(uid="a" * 32, job_id="a" * 32, name="other", status=Status.FINISHED)
    await room.trainings.add(other)
    for run in (room.training, other):
        await room.trainings.remove(run.uid)
    whole = room.workspace.remove

    async def broken(removal: Removal) -> None:
        if removal.uid == other.uid:
            raise OSError(5, "Input/output error")
        await whole(removal)

    step = room.step()
    with monkeypatch.context() as patch:
        patch.setattr(room.workspace, "remove", broken)
        await step()
        await step()
    assert [removal.uid for removal in await room.removals.pending()] == [other.uid]
    assert not room.folder.exists()
    assert [record.message for record in caplog.records].count(
        "training digits/other is not removed yet: [Errno 5] Input/output error"
    ) == 1
    await step()
    assert await room.removals.pending() == []


async def test_a_job_that_still_runs_is_stopped_first(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = room.training.job_id
    room.jobs.facts[job_id] = JobFacts(job_id, "RUNNING", "")
    await room.trainings.remove(room.training.uid)

    async def active(job_id: str) -> None:
        raise in_use("job", job_id, "its ranks")

    with monkeypatch.context() as patch:
        patch.setattr(room.jobs, "delete", active)
        await room.step()()
    assert room.jobs.stopped == [room.training.job_id]
    # It may still write.
    assert room.folder.exists()
    await room.step()()
    await room.assert_nothing_is_left()


async def test_nothing_is_lost_while_the_scheduling_service_is_away(room: Room) -> None:
    room.jobs.is_away = True
    await room.trainings.remove(room.training.uid)
    await room.step()()
    room.jobs.is_away = False
    await room.step()()
    await room.assert_nothing_is_left()


async def test_an_active_training_stays(room: Room) -> None:
    active = make_training(uid="a" * 32, job_id="a" * 32, name="active", status=Status.RUNNING)
    await room.trainings.add(active)
    with pytest.raises(ServiceError) as caught:
        await room.trainings.remove(active.uid)
    assert caught.value.code is Code.ABORTED
    assert await room.trainings.find(active.model_uid, "active") == active


@contextmanager
def without_root() -> Iterator[Path]:
    """A folder, and no more rights than its modes give: root may do everything."""
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid() != 0:
            yield Path(place)
            return
        os.chown(place, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(place)
        finally:
            os.seteuid(0)


def test_what_a_program_closed_and_buried_is_removed() -> None:
    with without_root() as place:
        folder = place / "run"
        folder.mkdir()
        # A call for each would be too many calls within each other.
        for depth in range(1, 1200):
            (folder / Path(*["a"] * depth)).mkdir()
        (folder / Path(*["a"] * 100)).chmod(0o555)
        for depth in (500, 2):
            (folder / Path(*["a"] * depth)).chmod(0)
        remove_folder(folder)
        assert not folder.exists()


def test_what_a_program_closed_is_removed() -> None:
    with without_root() as place:
        elsewhere, folder = place / "elsewhere", place / "run"
        elsewhere.mkdir(mode=0o500)
        inner = folder / "code" / "closed" / "deeper"
        inner.mkdir(parents=True)
        (inner / "file").touch()
        (folder / "code" / "link").symlink_to(elsewhere)
        for each in (inner, inner.parent, folder / "code", folder):
            each.chmod(0)
        remove_folder(folder)
        assert not folder.exists()
        assert elsewhere.stat().st_mode & 0o777 == 0o500
        remove_folder(folder)
