"""What is in Triton's memory, with a played Triton and clock: shared loads, room, idleness, refusals, crashes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from inference_service.domain.models import ModelState
from inference_service.usecases import model_health
from inference_service.usecases import residency as module
from inference_service.usecases.load_turns import LOADS_OF_AN_OWNER
from inference_service.usecases.ports import ServerEndedError
from inference_service.usecases.residency import MemoryLimits
from residency_room import Room, refusal
from servicekit.errors import Code
from servicekit.times import utc_now
from triton_fixtures import until


@pytest.fixture
def room() -> Room:
    return Room(MemoryLimits(idle_seconds=900, max_loaded=3))


@pytest.fixture
def roomy() -> Room:
    return Room(MemoryLimits(idle_seconds=900, max_loaded=0))


async def test_what_is_asked_for_is_loaded_once_for_all_who_wait(room: Room) -> None:
    room.models.add("a")
    await room.settle()
    assert room.loaded == {}, "nobody asked"
    room.server.may_load.clear()
    waiting = [asyncio.create_task(room.ensure("a")) for _ in range(20)]

    async def asked() -> bool:
        return bool(room.server.loads)

    await until(asked)
    room.server.may_load.set()
    await asyncio.gather(*waiting)
    await room.ensure("a")
    assert room.server.loads == ["a"]


async def test_who_waits_too_long_is_told_and_the_load_goes_on(room: Room) -> None:
    room.models.add("a")
    room.server.may_load.clear()
    error = await refusal(room.ensure("a", 0.01))
    assert (error.code, "is being loaded" in error.message) == (Code.UNAVAILABLE, True)
    assert error.retry_after_seconds
    room.server.may_load.set()
    await room.ensure("a")
    assert room.server.loads == ["a"]


async def test_loads_of_one_user_that_hang_do_not_stop_others(roomy: Room) -> None:
    room = roomy
    hanging = [f"slow-{number}" for number in range(20)]
    for name in hanging:
        room.models.add(name, owner="mallory")
    room.models.add("quick")
    may_end, room.server.may_load = room.server.may_load, asyncio.Event()
    may_end.clear()
    slow = [asyncio.create_task(room.ensure(name)) for name in hanging]

    async def asked() -> bool:
        return len(room.server.loads) == LOADS_OF_AN_OWNER

    await until(asked)
    hung, room.server.may_load = room.server.may_load, may_end
    may_end.set()
    await room.ensure("quick")
    assert not any(task.done() for task in slow)
    hung.set()
    await asyncio.gather(*slow)


async def test_a_load_that_takes_too_long_is_ended_and_the_version_fails(room: Room) -> None:
    model = room.models.add("a", ModelState.LOADING)
    room.server.is_late = True
    await room.settle()
    assert (model.state, room.server.ended) == (ModelState.FAILED, [("a", 1)])
    assert "within 1 s" in model.status_message


async def test_the_least_recently_used_makes_room(room: Room) -> None:
    for name in "abcd":
        room.models.add(name)
    for name in "abc":
        await room.ensure(name)
        room.now += 10
    await room.ensure("a")
    room.now += 10
    await room.ensure("d")
    assert set(room.loaded) == {"a", "c", "d"}
    await room.settle()
    assert set(room.loaded) == {"a", "c", "d"}, "what was driven out does not come back by itself"
    assert room.server.unloads == ["b"]


async def test_who_was_driven_out_does_not_drive_out_others_while_the_place_is_being_taken(room: Room) -> None:
    for name in "abcd":
        room.models.add(name)
    for name in "abc":
        await room.ensure(name)
        room.now += 10
    await room.settle()
    room.server.may_load.clear()
    waiting = asyncio.create_task(room.ensure("d"))

    async def asked() -> bool:
        return room.server.loads[-1] == "d"

    await until(asked)
    await room.step()
    room.server.may_load.set()
    await waiting
    await room.settle()
    assert set(room.loaded) == {"b", "c", "d"}


async def test_versions_count_and_a_model_has_room_whatever_the_limit_is(room: Room) -> None:
    room.models.add("wide", *[ModelState.READY] * 5)
    room.models.add("b")
    await room.ensure("b")
    room.now += 10
    await room.ensure("wide")
    assert room.loaded == {"wide": frozenset({1, 2, 3, 4, 5})}


async def test_what_predictions_use_or_was_used_a_moment_ago_stays(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_POLL_SECONDS", 0)
    for name in "abcd":
        room.models.add(name)
    room.predictions.models = ["a", "b"]
    await room.settle()
    assert set(room.loaded) == {"a", "b"}, "predictions have their models loaded"
    room.now += 10_000
    await room.settle()
    assert set(room.loaded) == {"a", "b"}, "however long they take"
    await room.ensure("c")
    waiting = asyncio.create_task(room.ensure("d"))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert "c" in room.loaded, "it was asked for a moment ago"
    room.now += module.RECENT_SECONDS + 1
    await waiting
    assert set(room.loaded) == {"a", "b", "d"}
    room.predictions.models = ["a", "b", "d"]
    await room.step()
    waiting = asyncio.create_task(room.ensure("c"))
    for _ in range(50):
        await asyncio.sleep(0)
    room.now += module.ROOM_SECONDS + 1
    error = await refusal(waiting)
    assert (error.code, "DLMESH_MAX_LOADED_MODELS" in error.message) == (Code.UNAVAILABLE, True)
    # Predictions say so, too, and new versions.
    room.predictions.models.append("c")
    await room.step()
    assert "DLMESH_MAX_LOADED_MODELS" in room.residency.lacks(room.models.known["c"])
    new = room.models.add("new", ModelState.LOADING)
    reason = room.residency.start("new")
    for _ in range(50):
        await asyncio.sleep(0)
    room.now += module.ROOM_SECONDS + 1
    assert "DLMESH_MAX_LOADED_MODELS" in await reason
    assert (new.state, new.status_message) == (ModelState.LOADING, await reason)
    assert room.models.known["c"].state is ModelState.READY


async def test_idle_models_leave_memory_and_come_back(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_health, "LOOK_SECONDS", -1.0)
    room.models.add("a")
    room.models.add("b")
    await room.ensure("a")
    await room.ensure("b")
    room.now += 800
    await room.settle()
    assert set(room.loaded) == {"a", "b"}
    # Somebody asked Triton itself, 100 s ago.
    room.server.used["b"] = utc_now().timestamp() - 100
    room.now += 200
    await room.settle()
    assert set(room.loaded) == {"b"}
    await room.ensure("a")
    assert set(room.loaded) == {"a", "b"}
    assert room.models.known["a"].state is ModelState.READY


async def test_zero_means_for_ever_and_any_number() -> None:
    room = Room(MemoryLimits(idle_seconds=0, max_loaded=0))
    for name in "abcdefgh":
        room.models.add(name)
        await room.ensure(name)
    room.now += 1e7
    await room.settle()
    assert set(room.loaded) == set("abcdefgh")


async def test_after_a_restart_of_triton_what_was_used_last_comes_back_first(room: Room) -> None:
    for name in "abcd":
        room.models.add(name)
    for name in "abc":
        await room.ensure(name)
        room.now += 10
    await room.settle()
    room.server.serving.clear()
    room.server.loads.clear()
    await room.settle()
    assert room.server.loads == ["c", "b", "a"]


async def test_a_new_process_loads_what_was_used_lately_and_fits(room: Room) -> None:
    now = utc_now()
    for index in range(200):
        # 0, 10, 20 ... minutes ago; ten fit into the idle time.
        room.models.add(f"m{index:03}", last_used_at=now - timedelta(seconds=90 * index + 1))
    room.limits = MemoryLimits(idle_seconds=900, max_loaded=4)
    room.start()
    await room.settle()
    assert room.server.loads == ["m000", "m001", "m002", "m003"]
    assert set(room.loaded) == set(room.server.loads)
    assert room.server.unloads == []


async def test_uses_are_stored_once_in_a_while(room: Room) -> None:
    room.models.add("a")
    await room.ensure("a")
    await room.settle()
    first = room.models.known["a"].last_used_at
    assert first is not None
    for _ in range(3):
        await room.ensure("a")
        await room.settle()
    assert room.models.known["a"].last_used_at == first


async def test_a_new_version_is_loaded_beside_the_others(room: Room) -> None:
    model = room.models.add("a", ModelState.READY, ModelState.LOADING)
    await room.settle()
    assert room.loaded == {"a": frozenset({1, 2})}
    assert model.version(2).state is ModelState.READY


async def test_a_version_that_triton_refuses_fails_and_leaves_the_others(room: Room) -> None:
    model = room.models.add("a")
    await room.ensure("a")
    model.versions.append(replace(model.versions[0], number=2, state=ModelState.LOADING))
    room.server.refusal = "version 2 is at UNAVAILABLE state: Internal: no module"
    await room.settle()
    assert (model.version(1).state, model.version(2).state) == (ModelState.READY, ModelState.FAILED)
    assert "no module" in model.version(2).status_message
    room.server.refusal = ""
    await room.ensure("a")
    assert room.loaded == {"a": frozenset({1})}


async def test_a_new_version_is_not_blamed_for_an_old_one(room: Room) -> None:
    model = room.models.add("a", ModelState.READY, ModelState.LOADING)
    room.server.refusal = "version 1 is at UNAVAILABLE state: out of memory"
    await room.settle()
    assert (model.version(1).state, model.version(2).state) == (ModelState.READY, ModelState.LOADING)
    room.server.refusal = ""
    room.now += 5
    await room.settle()
    assert model.version(2).state is ModelState.READY


async def test_what_served_before_and_is_refused_now_is_tried_again_later(room: Room) -> None:
    model = room.models.add("a")
    room.server.refusal = "CUDA out of memory"
    for _ in range(3):
        error = await refusal(room.ensure("a"))
        assert (error.code, "CUDA out of memory" in error.message) == (Code.UNAVAILABLE, True)
    assert room.server.loads == ["a"], "it is not asked again at once"
    room.predictions.models = ["a"]
    await room.step()
    assert "CUDA out of memory" in room.residency.lacks(model)
    room.predictions.models = []
    room.now += 1.5
    await refusal(room.ensure("a"))
    room.server.refusal = ""
    room.now += 1.5
    await refusal(room.ensure("a"))
    room.now += 1.5
    await room.ensure("a")
    assert len(room.server.loads) == 3
    assert model.state is ModelState.READY


async def test_who_takes_triton_down_is_found_and_others_are_not_blamed(room: Room) -> None:
    bad, good = room.models.add("bad", ModelState.LOADING), room.models.add("good", ModelState.LOADING)
    downs = 0

    async def load(name: str) -> None:
        nonlocal downs
        began = downs
        room.server.loads.append(name)
        for _ in range(5):
            await asyncio.sleep(0)
        if name == "bad":
            downs += 1
            room.server.serving.clear()
        if downs != began:
            # Also for who is loaded at the same time.
            raise ServerEndedError("Socket closed")
        room.server.serving[name] = room.server.offered(name)

    room.server.load = load  # type: ignore[method-assign]
    await room.settle()
    assert (bad.state, good.state) == (ModelState.FAILED, ModelState.READY)
    assert room.server.loads.count("bad") == module.MAX_CRASHES
    await room.settle()
    assert set(room.loaded) == {"good"}


async def test_a_triton_that_is_away_is_nobodys_fault(room: Room) -> None:
    model = room.models.add("a")
    room.server.is_away = True
    for _ in range(module.MAX_CRASHES + 1):
        error = await refusal(room.ensure("a"))
        assert (error.code, "does not answer" in error.message) == (Code.UNAVAILABLE, True)
    room.server.is_away = False
    await room.ensure("a")
    assert model.state is ModelState.READY


async def test_what_died_is_touched_and_loaded_again_and_failing_requests_alone_revive_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_health, "LOOK_SECONDS", -1.0)
    room.models.add("a")
    await room.ensure("a")
    running: set[tuple[str, int]] = {("a", 1)}
    room.server.processes = lambda: running  # type: ignore[method-assign, assignment, return-value]
    await room.settle()
    running.clear()
    await room.settle()
    assert room.server.loads == ["a"], "Triton answers for it"
    room.server.dead.add("a")
    await room.settle()
    assert room.server.loads == ["a", "a"]
    assert room.folders.touched == [("a", [1])]


async def test_what_hangs_in_a_request_is_ended_and_what_is_only_busy_is_not(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_health, "LOOK_SECONDS", -1.0)
    unix = 1e9
    room.step.health = model_health.ModelHealth(room.server, room.residency, lambda: unix + room.now)
    for name in ("hangs", "busy", "quiet"):
        room.models.add(name)
        await room.ensure(name)
        room.server.used[name] = unix + room.now
    room.server.silent |= {"hangs", "busy"}
    for _ in range(12):
        room.now += 50
        # Everybody is asked; one answers now and then, if not the probe; one is not stuck, it has nothing to say.
        for name in ("hangs", "busy", "quiet"):
            room.residency.use(name)
        room.server.used["busy"] = unix + room.now - 200
        await room.settle()
    assert room.server.ended == [("hangs", 1)]
    assert room.server.loads == ["hangs", "busy", "quiet", "hangs"]


async def test_an_unload_and_a_request_at_the_same_time_leave_it_loaded(room: Room) -> None:
    room.models.add("a")
    await room.ensure("a")
    unload, may_end = room.server.unload, asyncio.Event()

    async def slowly(name: str) -> None:
        await may_end.wait()
        await unload(name)

    room.server.unload = slowly  # type: ignore[method-assign]
    leaving = asyncio.create_task(room.residency.unload("a"))
    await asyncio.sleep(0)
    # Triton still lists it.
    await room.residency.refresh()
    waiting = asyncio.create_task(room.ensure("a"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    may_end.set()
    await asyncio.gather(leaving, waiting)
    assert room.loaded == {"a": frozenset({1})}


async def test_what_is_deleted_while_it_is_loaded_keeps_nobody_waiting(room: Room) -> None:
    room.models.add("a")
    room.server.may_load.clear()
    waiting = asyncio.create_task(room.ensure("a"))

    async def asked() -> bool:
        return bool(room.server.loads)

    await until(asked)
    await room.residency.drop("a")
    assert (room.server.ended, room.server.unloads) == ([("a", 1)], ["a"])
    assert (await refusal(waiting)).code is Code.UNAVAILABLE
    # Its name is free for another.
    room.server.may_load.set()
    await room.ensure("a")
    assert set(room.loaded) == {"a"}


async def test_loads_end_with_the_process(room: Room) -> None:
    room.models.add("a")
    room.server.may_load.clear()
    waiting = asyncio.create_task(room.ensure("a"))
    await asyncio.sleep(0)
    await room.residency.close()
    assert (await refusal(waiting)).code is Code.UNAVAILABLE
    assert not room.residency.is_loading("a")
