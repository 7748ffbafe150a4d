"""Tasks in streams: answered as they end, no more of them at once than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.inference.v1 import kernels_pb2 as pb
from dlmesh.inference.v1 import kernels_pb2_grpc
from inference_service.kernels.domain.pools import KernelFailedError, KernelTask
from inference_service.kernels.usecases.stream_tasks import INTERNAL_ERROR, LEAST_AT_ONCE
from kernel_fakes import KernelModelRoom, kernel_model_room, until_true
from testkit.services import ALICE, BOB, SECRET, acting_as


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[KernelModelRoom]:
    """A model `pong` takes tasks."""
    async with kernel_model_room(tmp_path) as made:
        made.write()
        with acting_as(ALICE):
            await made.publish()
            await made.start()
            yield made


@asynccontextmanager
async def streaming(room: KernelModelRoom, user: str = "alice") -> AsyncIterator[Any]:
    """An open stream; ended as a client that goes away does."""
    metadata = (("x-dlmesh-secret", SECRET), ("x-dlmesh-user", user))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{room.client.port}") as channel:
        call = kernels_pb2_grpc.KernelStreamServiceStub(channel).StreamKernelTasks(metadata=metadata)
        try:
            yield call
        finally:
            call.cancel()


def task(number: int, **fields: str) -> pb.StreamKernelTasksRequest:
    return pb.StreamKernelTasksRequest(**{"name": "pong", "id": str(number), "input": f"ping {number}", **fields})


async def test_answers_come_as_tasks_end(room: KernelModelRoom) -> None:
    gates = {str(number): asyncio.Event() for number in range(3)}

    async def answer(given: KernelTask) -> str:
        await gates[given.id].wait()
        if given.id == "1":
            raise KernelFailedError("ValueError: one is wrong")
        return f"pong {given.input}"

    room.pools.answer = answer
    async with streaming(room) as call:
        await call.write(task(0))
        # The model of the first task is meant when none is named.
        await call.write(task(1, name="", session_id="s"))
        await call.write(task(2, name=""))
        await call.done_writing()
        answers = aiter(call)
        for number in (2, 1, 0):
            gates[str(number)].set()
            found = await anext(answers)
            assert found.id == str(number)
            assert found.output == ("" if number == 1 else f"pong ping {number}")
            assert ("one is wrong" in found.error) == (number == 1)
        assert [one async for one in answers] == []
        assert await call.code() is grpc.StatusCode.OK
    assert [given.session_id for given in room.pools.tasks] == ["", "s", ""]


async def test_a_task_for_what_is_not_there_is_an_answer_and_the_first_one_an_error(room: KernelModelRoom) -> None:
    async with streaming(room) as call:
        await call.write(task(0))
        await call.write(task(1, name="none"))
        await call.done_writing()
        found = {one.id: one async for one in call}
        assert found["0"].output == "pong ping 0"
        assert "'none' does not exist" in found["1"].error
    for name, user, code in (
        ("none", "alice", grpc.StatusCode.NOT_FOUND),
        ("pong", BOB.user, grpc.StatusCode.PERMISSION_DENIED),
    ):
        async with streaming(room, user) as call:
            await call.write(task(0, name=name))
            assert await call.code() is code
    await room.stop()
    async with streaming(room) as call:
        await call.write(task(0))
        assert await call.code() is grpc.StatusCode.ABORTED
    async with streaming(room) as call:
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_what_goes_wrong_otherwise_is_an_answer_too_and_holds_no_place(room: KernelModelRoom) -> None:
    async def answer(given: KernelTask) -> str:
        if given.id != "last":
            raise ValueError("nobody has thought of that")
        return "pong"

    room.pools.answer = answer
    total = 4 * LEAST_AT_ONCE
    async with streaming(room) as call:
        for number in range(total):
            await call.write(task(number))
        await call.write(task(0, id="last"))
        await call.done_writing()
        found = {one.id: one async for one in call}
    assert (len(found), found["last"].output) == (total + 1, "pong")
    assert {one.error for one in found.values()} == {"", INTERNAL_ERROR}


async def test_a_fast_client_waits_and_one_that_goes_away_leaves_nothing(room: KernelModelRoom) -> None:
    gate = asyncio.Event()

    async def answer(given: KernelTask) -> str:
        await gate.wait()
        return "pong"

    room.pools.answer = answer
    total = 5 * LEAST_AT_ONCE
    async with streaming(room) as call:
        for number in range(total):
            await call.write(task(number))
        await until_true(lambda: len(room.pools.tasks) == LEAST_AT_ONCE)
        gate.set()
        await call.done_writing()
        found = {one.id async for one in call}
        assert found == {str(number) for number in range(total)}
    gate.clear()
    room.pools.tasks.clear()
    async with streaming(room) as call:
        for number in range(total):
            await call.write(task(number))
        await until_true(lambda: len(room.pools.tasks) == LEAST_AT_ONCE)
    await until_true(lambda: len(room.pools.cancelled) == LEAST_AT_ONCE)
    assert len(room.pools.tasks) == LEAST_AT_ONCE


async def test_slow_tasks_are_discarded_where_the_profile_says_so(room: KernelModelRoom) -> None:
    await room.stop()
    profile = pb.KernelProfile(policy=pb.KernelPolicy(stream_discard_slow_tasks=True))
    await room.stub.UpdateKernelProfile(pb.UpdateKernelProfileRequest(name="pong", profile=profile))
    await room.start()
    gate = asyncio.Event()

    async def answer(given: KernelTask) -> str:
        await gate.wait()
        return "pong"

    room.pools.answer = answer
    total = 5 * LEAST_AT_ONCE
    async with streaming(room) as call:
        for number in range(total):
            await call.write(task(number))
        # What waits longest goes: the first ones are with the kernels.
        answers = aiter(call)
        first = await anext(answers)
        assert (first.id, first.error[:10]) == (str(LEAST_AT_ONCE), "discarded:")
        gate.set()
        await call.done_writing()
        found = {first.id: first, **{one.id: one async for one in answers}}
    assert len(found) == total
    answered = {int(one.id) for one in found.values() if one.output}
    assert answered >= set(range(LEAST_AT_ONCE))
    assert total - 1 in answered
