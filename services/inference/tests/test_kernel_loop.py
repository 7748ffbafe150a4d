"""The loop of kernel models, and what happens when somebody else comes in between."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from inference_service.kernels.domain.models import KernelModel, KernelState
from inference_service.kernels.domain.pools import KernelLaunch, PoolPhase, PoolState
from inference_service.kernels.usecases.ask_kernels import AskKernels
from inference_service.kernels.usecases.change_model import ChangeKernelModel, KernelChanges
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.ports import Files
from inference_service.kernels.usecases.run_kernels import RunKernels
from inference_service.kernels.usecases.start_stop_kernels import StartStopKernels
from inference_service.kernels.usecases.started_kernels import StartedKernels
from kernel_fakes import FakePools
from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next
from test_kernel_domain import make_model
from testkit.services import ALICE, acting_as


class Models:
    """Rows in memory; `before_write` is what somebody else does in the last moment."""

    def __init__(self, *models: KernelModel) -> None:
        self.rows = {model.name: model for model in models}
        self.before_write: Any = lambda: None

    async def find(self, name: str) -> KernelModel | None:
        return replace(self.rows[name]) if name in self.rows else None

    async def all(self) -> list[KernelModel]:
        return [replace(model) for model in self.rows.values()]

    async def move(self, model: KernelModel, before: KernelState) -> bool:
        return self._write(model, self.rows[model.name].state is before)

    async def change(self, model: KernelModel, seen: datetime) -> bool:
        return self._write(model, lambda row: row.state.may_change and row.updated_at == seen)

    async def delete(self, uid: str) -> bool:
        [model] = [model for model in self.rows.values() if model.uid == uid]
        return self._write(model, lambda row: row.state.may_change)

    def _write(self, model: KernelModel, may: Any) -> bool:
        before = self.rows[model.name].state
        self.before_write()
        row = self.rows[model.name]
        is_allowed = may(row) if callable(may) else may and row.state is before
        if is_allowed:
            self.rows[model.name] = replace(model)
        return is_allowed


class Folders:
    """Notes which weights are removed."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def folder(self, uid: str) -> Path:
        return Path("/kernels", uid)

    async def add_weights(self, model: KernelModel, text: str) -> Files:
        return Files(model.kernel_path, text, 7)

    async def remove_weights(self, model: KernelModel, weights: str) -> None:
        self.removed.append(weights)


class Room:
    """The use cases over rows in memory."""

    def __init__(self, *models: KernelModel) -> None:
        self.models, self.folders, self.pools = Models(*models), Folders(), FakePools()
        self.started = StartedKernels()
        parts: Any = (self.models, self.folders, self.pools)
        self.run = RunKernels(*parts, self.started, "ann")
        self.queries = KernelModelQueries(*parts)
        self.change = ChangeKernelModel(self.models, self.folders, self.queries)  # type: ignore[arg-type]
        self.start_stop = StartStopKernels(self.models, self.queries, self.started, lambda: None)  # type: ignore[arg-type]
        self.ask = AskKernels(self.queries, self.started, self.pools, max_input_bytes=100)

    def state(self, name: str = "pong") -> KernelState:
        return self.models.rows[name].state

    def moves_to(self, state: KernelState, name: str = "pong") -> Any:
        """What somebody else does, once."""

        def write() -> None:
            self.models.before_write = lambda: None
            self.models.rows[name] = replace(self.models.rows[name], state=state)

        return write


async def test_a_stop_in_between_wins() -> None:
    room = Room(make_model(KernelState.STARTING))
    room.models.before_write = room.moves_to(KernelState.STOPPING)
    assert await room.run() is Next.SOON
    assert room.state() is KernelState.STOPPING
    assert await room.started.find("pong") is None
    while await room.run() is Next.SOON:
        await asyncio.sleep(0)
    assert (room.state(), room.pools.launches) == (KernelState.STOPPED, {})


async def test_one_that_runs_says_what_is_the_matter_with_it() -> None:
    room = Room(make_model(KernelState.STARTED))
    for reason in ("its kernels do not start", ""):
        room.pools.phase = PoolState(PoolPhase.READY, reason)
        await room.run()
        row = room.models.rows["pong"]
        assert (row.state, row.status_message) == (KernelState.STARTED, reason)
        # It takes tasks all the same.
        assert await room.started.find("pong") is not None


async def test_one_that_cannot_be_seen_to_says_why_and_the_others_run() -> None:
    room = Room(make_model(KernelState.STARTING), make_model(KernelState.STARTING, uid="u2", name="ping"))
    ensure = room.pools.ensure

    async def fails_for_pong(launch: KernelLaunch) -> None:
        if launch.name == "pong":
            raise OSError("the disk is full")
        await ensure(launch)

    room.pools.ensure = fails_for_pong  # type: ignore[method-assign]
    assert await room.run() is Next.SOON
    assert (room.state("pong"), room.state("ping")) == (KernelState.STARTING, KernelState.STARTED)
    assert "the disk is full" in room.models.rows["pong"].status_message
    assert [launch.execution_user for launch in room.pools.launches.values()] == ["ann"]
    room.pools.ensure = ensure  # type: ignore[method-assign]
    await room.run()
    assert (room.state("pong"), room.models.rows["pong"].status_message) == (KernelState.STARTED, "")


async def test_what_a_model_waits_for_is_told() -> None:
    room = Room(make_model(KernelState.STARTING))
    room.pools.phase = PoolState(PoolPhase.STARTING, "the machine has as many kernels as it may")
    await room.run()
    assert room.models.rows["pong"].status_message == "the machine has as many kernels as it may"


async def test_a_failure_of_what_was_started_ends_its_pool() -> None:
    room = Room(make_model(KernelState.STARTED))
    await room.run()
    assert await room.started.find("pong") is not None
    room.pools.phase = PoolState(PoolPhase.FAILED, "five in a row")
    await room.run()
    assert room.state() is KernelState.FAILED
    assert await room.started.find("pong") is None
    while await room.run() is Next.SOON:
        await asyncio.sleep(0)
    assert (room.state(), room.pools.launches) == (KernelState.FAILED, {})
    # Started again while the pool of before is still ending: it is not made before that has gone.
    room.pools.may_drain.clear()
    with acting_as(ALICE):
        await room.start_stop.start("pong")
        room.pools.phase = PoolState(PoolPhase.READY)
        await room.run()
        await room.start_stop.stop("pong")
        await room.run()
        room.models.rows["pong"].state = KernelState.STARTING
        ensured = room.pools.ensured
        await room.run()
        assert (room.pools.ensured, room.state()) == (ensured, KernelState.STARTING)
        room.pools.may_drain.set()
        while room.state() is KernelState.STARTING:
            await room.run()
            await asyncio.sleep(0)
        assert room.state() is KernelState.STARTED


async def test_a_pool_that_does_not_end_is_ended_again(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(make_model(KernelState.STOPPING))
    await room.pools.ensure(room.models.rows["pong"].launch(Path("/k"), ""))
    drain = room.pools.drain

    async def fails(uid: str) -> None:
        raise OSError("no such process")

    room.pools.drain = fails  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await room.run()
            await asyncio.sleep(0)
    assert "no such process" in caplog.text
    assert room.state() is KernelState.STOPPING
    room.pools.drain = drain  # type: ignore[method-assign]
    while room.state() is KernelState.STOPPING:
        await room.run()
        await asyncio.sleep(0)
    assert room.pools.launches == {}


async def test_a_start_in_between_keeps_a_change_from_being_made() -> None:
    room = Room(make_model(weights="weights/old/w"))
    with acting_as(ALICE):
        for work in (
            room.change.update("pong", lambda model: KernelChanges(weight_path="weights/new/w")),
            room.change.update_profile("pong", lambda model: replace(model.profile, type="new")),
            room.change.delete("pong"),
        ):
            room.models.rows["pong"].state = KernelState.STOPPED
            room.models.before_write = room.moves_to(KernelState.STARTING)
            with pytest.raises(ServiceError, match="in this moment") as caught:
                await work
            assert caught.value.code is Code.ABORTED
        # Only what was copied for nothing is removed.
        assert room.folders.removed == ["weights/new/w"]
        assert room.models.rows["pong"].weights == "weights/old/w"
        room.models.rows["pong"].state = KernelState.STOPPED
        await room.change.update("pong", lambda model: KernelChanges(weight_path="weights/new/w"))
        assert room.folders.removed == ["weights/new/w", "weights/old/w"]


async def test_two_who_start_and_stop_see_what_the_other_did() -> None:
    room = Room(make_model(KernelState.STOPPED))
    with acting_as(ALICE):
        room.models.before_write = room.moves_to(KernelState.STARTING)
        await room.start_stop.start("pong")
        assert room.state() is KernelState.STARTING
        room.models.before_write = room.moves_to(KernelState.STARTED)
        await room.start_stop.stop("pong")
        assert room.state() is KernelState.STOPPING


async def test_how_long_a_task_may_take() -> None:
    model = make_model(KernelState.STARTED)
    unlimited = make_model(KernelState.STARTED, uid="u2", name="long")
    policy = replace(unlimited.profile.policy, task_execution_timeout_seconds=-1)
    unlimited.profile = replace(unlimited.profile, policy=policy)
    room = Room(model, unlimited)
    await room.run()
    with acting_as(ALICE):
        for name, most in (("pong", None), ("pong", 5.0), ("long", None)):
            await room.ask(name, "x", most_seconds=most)
    assert [task.timeout_seconds for task in room.pools.tasks] == [120.0, 5.0, 24 * 3600.0 + 60.0]


async def test_after_a_restart_tasks_wait_for_the_first_pass() -> None:
    room = Room(make_model(KernelState.STARTED))
    with acting_as(ALICE):
        early = asyncio.create_task(room.ask("pong", "ping"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (early.done(), room.pools.tasks) == (False, [])
        await room.run()
        assert await early == "pong ping"


async def test_what_is_stopped_takes_no_task_even_before_the_loop_comes_by() -> None:
    room = Room(make_model(KernelState.STARTED))
    await room.run()
    with acting_as(ALICE):
        assert await room.ask("pong", "ping") == "pong ping"
        await room.start_stop.stop("pong")
        with pytest.raises(ServiceError, match="is STOPPING") as caught:
            await room.ask("pong", "ping")
    assert caught.value.code is Code.ABORTED
