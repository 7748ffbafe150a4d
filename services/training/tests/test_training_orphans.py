"""Runs of models that have gone: stopped at once, removed after a grace that no restart shortens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servicekit.database import Database
from training_fakes import MODEL, FakeModels, make_training, make_validation
from training_service.domain.runs import Status
from training_service.settings import TrainingSettings
from training_service.storage import MIGRATIONS
from training_service.storage.removals import SqlRemovals
from training_service.storage.runs import SqlTrainings, SqlValidations
from training_service.usecases.reconcile import RemoveOrphans

GRACE_SECONDS = 60


class Room:
    """A model with a finished training and a clock that tests move."""

    def __init__(self, home: Path) -> None:
        self.database = Database(f"sqlite:///{home / 'training.sqlite'}", "training")
        self.trainings = SqlTrainings(self.database, lambda _: "")
        self.validations = SqlValidations(self.database)
        self.models, self.now = FakeModels(), datetime(2026, 11, 25, tzinfo=UTC)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    async def step(self, runs: Any = None) -> list[str]:
        """One pass of a process that has just begun; uids of the runs whose removal is ordered."""
        await RemoveOrphans(
            runs or self.trainings,
            self.models,
            grace_seconds=GRACE_SECONDS,
            wake_removals=self.wake,
            now=lambda: self.now,
        )()
        return [order.uid for order in await SqlRemovals(self.database).pending()]

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    await room.database.migrate(MIGRATIONS)
    await room.trainings.add(make_training(uid="ended", job_id="ended", name="ended", status=Status.FINISHED))
    yield room
    await room.database.close()


@pytest.mark.parametrize("name_is_taken", [False, True])
async def test_what_has_ended_is_removed_after_the_grace(room: Room, name_is_taken: bool) -> None:
    assert await room.step() == []
    room.wait(10 * GRACE_SECONDS)
    if name_is_taken:
        room.models.known["digits"] = replace(MODEL, uid="model-2")
    else:
        room.models.known.clear()
    assert await room.step() == []
    room.wait(GRACE_SECONDS - 1)
    assert await room.step() == []
    room.wait(1)
    assert await room.step() == ["ended"]
    assert room.woken == 1
    assert await room.trainings.of_model("model-1") == []


async def test_a_model_that_comes_back_has_its_whole_grace_again(room: Room) -> None:
    model = room.models.known.pop("digits")
    await room.step()
    room.wait(GRACE_SECONDS - 1)
    room.models.known["digits"] = model
    await room.step()
    room.models.known.clear()
    room.wait(GRACE_SECONDS)
    assert await room.step() == []
    room.wait(GRACE_SECONDS)
    assert await room.step() == ["ended"]


async def test_what_is_active_is_stopped_at_once_and_what_it_uses_stays(room: Room) -> None:
    await room.validations.add(make_validation(training_uid="ended", status=Status.RUNNING))
    room.models.known.clear()
    assert await room.step(room.validations) == []
    [validation] = await room.validations.of_model("model-1")
    assert validation.stop_requested
    await room.step()
    room.wait(GRACE_SECONDS)
    assert await room.step() == []
    await room.validations.save_state(replace(validation, status=Status.STOPPED))
    assert await room.step() == ["ended"]
    assert await room.step(room.validations) == ["ended", validation.uid]


async def test_trials_are_ended_and_removed_with_their_model(room: Room) -> None:
    for uid, status in (("over", Status.FINISHED), ("going", Status.RUNNING)):
        await room.trainings.add(make_training(uid=uid, job_id=uid, name=uid, study="s1", status=status))
    room.models.known.clear()
    assert await room.step() == []
    going = await room.trainings.by_uid("going")
    assert going is not None
    assert going.stop_requested
    room.wait(GRACE_SECONDS)
    assert await room.step() == ["ended", "over"]


def test_the_grace_is_a_setting() -> None:
    assert TrainingSettings.from_environment({}).orphan_grace_seconds == 3600
    assert TrainingSettings.from_environment({"DLMESH_ORPHAN_GRACE_SECONDS": "0"}).orphan_grace_seconds == 0
    with pytest.raises(ValueError, match="DLMESH_ORPHAN_GRACE_SECONDS: '-1'"):
        TrainingSettings.from_environment({"DLMESH_ORPHAN_GRACE_SECONDS": "-1"})
