"""What is in the way of one run is not in the way of the others, and is not its end when it passes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from servicekit.database import Database
from servicekit.reconcile import Next
from training_fakes import FakeJobs, make_training
from training_service.domain.runs import Status, Training
from training_service.settings import TrainingSettings
from training_service.storage import MIGRATIONS
from training_service.storage.runs import SqlTrainings
from training_service.storage.workspace import DiskWorkspace
from training_service.usecases.reconcile import FollowJobs
from training_service.usecases.submit_runs import SubmitRuns


class BrokenWorkspace(DiskWorkspace):
    """Cannot prepare the training that is called broken while there is an `error`."""

    error: Exception | None = None

    async def prepare_training(self, training: Training) -> Sequence[str]:
        if self.error and training.name == "broken":
            raise self.error
        return ["true"]


class Room:
    """The loop over two trainings, the older of which is called broken."""

    def __init__(self, home: Path) -> None:
        self.database = Database(f"sqlite:///{home / 'training.sqlite'}", "training")
        self.trainings = SqlTrainings(self.database, lambda _: "")
        self.jobs, self.workspace = FakeJobs(), BrokenWorkspace(home)
        self.step = FollowJobs(self.trainings, self.jobs, self.workspace, TrainingSettings())

    async def training(self, name: str) -> Training:
        found = await self.trainings.find("model-1", name)
        assert found is not None
        return found


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    await room.database.migrate(MIGRATIONS)
    for name in ("broken", "whole"):
        await room.trainings.add(make_training(uid=name, job_id=name, name=name))
    yield room
    await room.database.close()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("embedded null byte"),
        AssertionError(),
    ],
    ids=repr,
)
async def test_what_passes_is_waited_for(room: Room, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    room.workspace.error = error
    assert await room.step() is Next.AT_ONCE
    assert list(room.jobs.requests) == ["whole"]
    assert await room.step() is Next.SOON
    waiting = await room.training("broken")
    assert (waiting.status, waiting.accepted) == (Status.SUBMITTED, False)
    assert waiting.status_message == f"cannot prepare the run, trying again: {error or type(error).__name__}"
    assert len([record for record in caplog.records if "broken" in record.message]) == 1
    room.workspace.error = None
    await room.step()
    assert list(room.jobs.requests) == ["whole", "broken"]
    assert (await room.training("broken")).status_message == "waiting for 2 slots"


async def test_while_it_waits_it_can_be_stopped(room: Room) -> None:
    room.workspace.error = OSError(errno.ENOSPC, "No space left on device")
    await room.step()
    await room.trainings.request_stop("broken")
    await room.step()
    assert (await room.training("broken")).status is Status.STOPPED


async def test_what_does_not_pass_is_its_end(room: Room) -> None:
    room.workspace.error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/models/gone")
    await room.step()
    broken = await room.training("broken")
    assert (broken.status, "/models/gone" in broken.status_message) == (Status.FAILED, True)
    assert list(room.jobs.requests) == ["whole"]


async def test_a_run_that_cannot_be_saved_holds_up_no_other(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.workspace.error = OSError(errno.ENOSPC, "No space left on device")
    save = room.trainings.save_state

    async def broken(run: Training) -> None:
        if run.name == "broken":
            raise OSError(errno.ENOSPC, "No space left on device")
        await save(run)

    monkeypatch.setattr(room.trainings, "save_state", broken)
    await room.step()
    assert (await room.training("whole")).accepted


class SlowWorkspace(BrokenWorkspace):
    """Counts how often a training is prepared, each time until `gate` is open."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.gate, self.prepared = asyncio.Event(), list[str]()

    async def prepare_training(self, training: Training) -> Sequence[str]:
        self.prepared.append(training.name)
        await self.gate.wait()
        return ["true"]


async def test_a_run_is_submitted_once_at_a_time(room: Room, tmp_path: Path) -> None:
    workspace = SlowWorkspace(tmp_path)
    submit = SubmitRuns(room.trainings, room.jobs, workspace, TrainingSettings())
    loop = FollowJobs(room.trainings, room.jobs, workspace, TrainingSettings(), submit=submit)
    asked = [asyncio.create_task(submit(await room.training(name))) for name in ("broken", "broken", "whole")]
    async with asyncio.timeout(60):
        while len(workspace.prepared) < 2:
            await asyncio.sleep(0)
        # The loop leaves alone what is being submitted, and one that goes away ends nothing.
        assert await loop() is Next.SOON
    asked[0].cancel()
    workspace.gate.set()
    assert await asyncio.gather(*asked[1:]) == [True, True]
    assert sorted(workspace.prepared) == ["broken", "whole"]
    assert not submit.is_submitting(await room.training("broken"))
    assert [(await room.training(name)).accepted for name in ("broken", "whole")] == [True, True]
