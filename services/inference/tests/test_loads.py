"""Loads that fail, that wait for their turn, and what they hold of Triton's memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from inference_service.domain.models import ModelState
from inference_service.usecases import load_faults, model_health
from inference_service.usecases import residency as module
from inference_service.usecases.load_turns import LoadTurns
from inference_service.usecases.ports import LoadRefusedError, ServerAwayError, ServerEndedError
from inference_service.usecases.residency import MemoryLimits
from residency_room import Room, refusal
from servicekit.errors import Code


@pytest.fixture
def room() -> Room:
    return Room(MemoryLimits(idle_seconds=900, max_loaded=3))


@pytest.fixture
def roomy() -> Room:
    return Room(MemoryLimits(idle_seconds=900, max_loaded=0))


async def some_time() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def broken_disk(room: Room) -> None:
    async def offer(name: str, numbers: object) -> None:
        raise OSError("disk full")

    room.folders.offer = offer  # type: ignore[method-assign]


async def test_what_fails_as_nobody_foresaw_is_tried_again_later_and_fails_in_the_end(room: Room) -> None:
    model = room.models.add("a", ModelState.LOADING)
    broken_disk(room)
    await room.settle()
    assert not room.residency.is_due("a"), "not again at once"
    assert (model.state, "disk full" in model.status_message) == (ModelState.LOADING, True)
    for _ in range(module.MAX_SURPRISES - 1):
        room.now += load_faults.LONGEST_PAUSE_SECONDS
        await room.settle()
    assert (model.state, "disk full" in model.status_message) == (ModelState.FAILED, True)


async def test_what_was_ready_does_not_fail_for_a_full_disk(room: Room) -> None:
    model = room.models.add("a")
    broken_disk(room)
    for _ in range(module.MAX_SURPRISES + 1):
        error = await refusal(room.ensure("a"))
        assert (error.code, "disk full" in error.message) == (Code.UNAVAILABLE, True)
        room.now += load_faults.LONGEST_PAUSE_SECONDS
    assert model.state is ModelState.READY


async def test_a_version_without_its_folder_is_exported_again(room: Room) -> None:
    model = room.models.add("a", ModelState.READY, ModelState.LOADING)
    room.folders.lost = {2}
    room.server.refusal = "version 2 is at UNAVAILABLE state: not found"
    await room.residency.start("a")
    assert model.version(2).state is ModelState.EXPORTING
    broken_disk(room)
    model.version(2).state = ModelState.LOADING
    room.now += load_faults.LONGEST_PAUSE_SECONDS
    await room.residency.start("a")
    assert model.version(2).state is ModelState.EXPORTING


async def test_loads_that_wait_for_their_turn_drive_nobody_out(room: Room) -> None:
    for name in "ab":
        room.models.add(name)
        await room.ensure(name)
    room.now += 10
    room.server.may_load.clear()
    for number in range(6):
        room.models.add(f"new-{number}", owner=f"user-{number}")
    loads = [asyncio.create_task(room.ensure(f"new-{number}")) for number in range(3)]
    await some_time()
    assert len(room.server.loads) == 5, "three fit at a time"
    more = [asyncio.create_task(room.ensure(f"new-{number}")) for number in range(3, 6)]
    await some_time()
    assert len(room.server.loads) == 5
    room.server.may_load.set()
    await asyncio.gather(*loads)
    assert set(room.loaded) == {"new-0", "new-1", "new-2"}
    room.now += 10
    await asyncio.gather(*more)
    assert set(room.loaded) == {"new-3", "new-4", "new-5"}


async def test_a_queue_of_loads_evicts_only_for_those_that_have_their_turn(room: Room) -> None:
    for name in "abc":
        room.models.add(name)
        await room.ensure(name)
    room.now += 10
    room.server.may_load.clear()
    # Two of one user load, the others wait; with a claim each they would need six places.
    for number in range(6):
        room.models.add(f"new-{number}", owner="mallory")
    tasks = [asyncio.create_task(room.ensure(f"new-{number}")) for number in range(6)]
    await some_time()
    assert len(room.server.unloads) == 2
    for task in tasks:
        task.cancel()
    await room.residency.close()


async def test_turns_never_claim_more_than_there_is() -> None:
    suspects: set[str] = set()
    turns = LoadTurns(3, suspects.__contains__)
    may_end = asyncio.Event()

    async def load(name: str, count: int) -> None:
        async with turns.turn(name, name, count):
            await may_end.wait()

    tasks = [asyncio.create_task(load(*each)) for each in (("a", 2), ("b", 2), ("c", 1))]
    await some_time()
    assert turns.claims == {"a": 2, "c": 1}
    assert not turns.claim("c", 2)
    assert turns.claim("a", 1)
    assert turns.claim("c", 2)
    may_end.set()
    await asyncio.gather(*tasks)
    # One that needs more than there is gets it alone, and so does a suspect.
    may_end.clear()
    suspects.add("x")
    tasks = [asyncio.create_task(load(*each)) for each in (("wide", 9), ("a", 1), ("x", 1))]
    await some_time()
    assert turns.claims == {"wide": 9}
    may_end.set()
    await asyncio.gather(*tasks)
    assert turns.claims == {}


async def test_a_slow_triton_is_no_crash_and_what_was_ready_is_never_given_up(room: Room) -> None:
    new, old = room.models.add("new", ModelState.LOADING), room.models.add("old")
    load = room.server.load

    async def late(name: str) -> None:
        raise ServerAwayError("Deadline Exceeded")

    room.server.load = late  # type: ignore[method-assign]
    for _ in range(module.MAX_CRASHES + 1):
        await room.residency.start("new")
    assert new.state is ModelState.LOADING

    async def ends(name: str) -> None:
        raise ServerEndedError("Socket closed")

    room.server.load = ends  # type: ignore[method-assign]
    for _ in range(module.MAX_CRASHES):
        await room.residency.start("old")
    assert old.state is ModelState.READY
    error = await refusal(room.ensure("old"))
    assert "Triton ended 5 times" in error.message
    room.server.load = load  # type: ignore[method-assign]
    room.now += module.CRASH_PAUSE_SECONDS
    await room.ensure("old")


async def test_an_old_crash_keeps_nobody_waiting(roomy: Room) -> None:
    room = roomy
    room.models.add("bad", ModelState.LOADING)
    room.server.dies_on_load = True
    await room.residency.start("bad")
    room.server.dies_on_load = False
    room.server.may_load.clear()
    tasks = []
    for name in "abc":
        room.models.add(name, owner=name)
        tasks.append(asyncio.create_task(room.ensure(name)))
    await some_time()
    assert room.server.loads == ["bad", "a", "b", "c"]
    # The suspect waits until nobody can be confused with it, or nobody suspects it any more.
    tasks.append(asyncio.create_task(room.ensure("bad")))
    await some_time()
    assert len(room.server.loads) == 4
    room.now += load_faults.SUSPICION_SECONDS
    room.models.add("d", owner="d")
    tasks.append(asyncio.create_task(room.ensure("d")))
    await some_time()
    room.server.may_load.set()
    await asyncio.gather(*tasks)
    assert set(room.loaded) == {"a", "b", "c", "d", "bad"}


async def test_what_is_deleted_is_suspected_no_more(roomy: Room) -> None:
    roomy.models.add("bad", ModelState.LOADING)
    roomy.server.dies_on_load = True
    for _ in range(module.MAX_CRASHES - 1):
        await roomy.residency.start("bad")
    del roomy.models.known["bad"]
    await roomy.residency.drop("bad")
    again = roomy.models.add("bad", ModelState.LOADING)
    await roomy.residency.start("bad")
    assert again.state is ModelState.LOADING


async def test_what_fails_its_probe_leaves_memory(room: Room) -> None:
    model = room.models.add("a", ModelState.LOADING)

    async def probe(name: str, number: int) -> None:
        raise LoadRefusedError("it answers zeros")

    room.server.probe = probe  # type: ignore[method-assign]
    await room.residency.start("a")
    assert (model.state, room.loaded, room.server.unloads) == (ModelState.FAILED, {}, ["a"])


async def test_what_no_row_asks_for_leaves_memory(room: Room) -> None:
    model = room.models.add("failed", ModelState.FAILED)
    room.models.add("fine")
    await room.ensure("fine")
    room.server.serving |= {"failed": frozenset({1}), "deleted": frozenset({1})}
    await room.settle()
    assert set(room.loaded) == {"fine"}
    assert model.state is ModelState.FAILED


async def test_waiting_predictions_of_one_user_hold_no_more_than_their_share() -> None:
    room = Room(MemoryLimits(idle_seconds=900, max_loaded=4))
    for name in "abcdef":
        room.models.add(name)
    room.predictions.models = list("abcdef")
    room.predictions.owners = dict.fromkeys("abcde", "mallory")
    await room.settle()
    assert set(room.loaded) == {"a", "b", "f"}
    lacks = [name for name in "abcdef" if room.residency.lacks(room.models.known[name])]
    assert lacks == ["c", "d", "e"]
    # What runs holds whatever it needs, and the next wait for it.
    room.predictions.accepted = {"a", "c", "d"}
    room.now += 10
    await room.settle()
    assert set(room.loaded) == {"a", "c", "d", "f"}
    room.predictions.models = ["b", "e", "f"]
    room.predictions.accepted = set()
    room.now += 10
    await room.settle()
    assert {"b", "e", "f"} <= set(room.loaded)


async def test_two_that_die_at_once_are_both_touched(room: Room) -> None:
    room.models.add("a", ModelState.READY, ModelState.READY)
    await room.ensure("a")
    for number in (1, 2):
        room.residency.revive("a", frozenset({number}))
    await room.residency.start("a")
    assert room.folders.touched == [("a", [1, 2])]


async def test_what_is_refused_again_and_again_is_not_tried_more_often_for_want_of_room(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM_POLL_SECONDS", 0)
    for name in "abcd":
        room.models.add(name)
    room.server.refusal = "CUDA out of memory"
    for _ in range(6):
        await room.residency.start("d")
        room.now += load_faults.LONGEST_PAUSE_SECONDS
    room.server.refusal = ""
    room.predictions.models = ["a", "b", "c"]
    await room.settle()
    waiting = room.residency.start("d")
    await some_time()
    room.now += module.ROOM_SECONDS + 1
    assert "DLMESH_MAX_LOADED_MODELS" in await waiting
    room.predictions.models = []
    await room.step()
    room.now += 10
    room.server.refusal = "CUDA out of memory"
    await room.residency.start("d")
    room.now += 30
    assert not room.residency.is_due("d")


async def test_what_works_after_a_long_rest_does_not_hang(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_health, "LOOK_SECONDS", -1.0)
    unix = 1e9
    room.step.health = model_health.ModelHealth(room.server, room.residency, lambda: unix + room.now)
    room.models.add("a")
    await room.ensure("a")
    room.server.used["a"] = unix + room.now
    room.now += 2 * model_health.STUCK_SECONDS
    # It works on a large batch, and answers no probe meanwhile.
    room.residency.use("a")
    room.server.silent.add("a")
    for _ in range(5):
        await room.settle()
        room.now += 10
    assert room.server.ended == []
    room.now += model_health.STUCK_SECONDS
    for _ in range(5):
        await room.settle()
    assert room.server.ended == [("a", 1)]


def test_versions_go_back_only_from_loading() -> None:
    from pathlib import Path

    from triton_fixtures import make_model

    version = make_model("m", Path(), Path()).versions[0]
    version = replace(version, state=ModelState.READY)
    with pytest.raises(ValueError, match="READY to EXPORTING"):
        version.lost()
