"""Pools of real kernels: tasks and batches, what kernels do wrong, and how many of them there are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from inference_service.kernels.domain.pools import (
    NO_LIMIT,
    KernelFailedError,
    NotStartedError,
    PoolPhase,
    PoolState,
    PoolStatistics,
    QueueFullError,
    TaskTimeoutError,
)
from inference_service.kernels.engine import kernel
from kernel_room import OBEDIENT, UID, Room, failure, is_alive, kernel_room, until


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with kernel_room(tmp_path / "home", start_tries=2, queue_tasks=20, output_bytes=1000) as room:
        yield room


async def test_tasks_that_wait_are_one_batch_which_is_a_list(room: Room) -> None:
    await room.start(task_batch_size=4)
    wait, open_gate = room.gate("first")
    first = room.asking(wait)
    await room.begun("first")
    look = "before = task.prev() and task.prev().get_id()\n"
    look += "answer = f'{task.get_id()} {task.get_session_id()} {size} {before}'"
    others = [room.asking(look, id=str(number), session_id="s") for number in range(6)]
    await until(lambda: room.pools.statistics(UID).pending == 6)
    open_gate()
    assert await first == "1"
    assert await asyncio.gather(*others) == ["0 s 4 None", "1 s 4 0", "2 s 4 1", "3 s 4 2", "4 s 2 None", "5 s 2 4"]


async def test_a_kernel_knows_its_model_and_itself(room: Room) -> None:
    description = {"name": "obedient", "weight_path": "/w", "attributes": [{"key": "k", "value": "ä"}]}
    await room.start(replace(room.launch(description=description), environment={"MINE": "1", "OMP_NUM_THREADS": "3"}))
    answer = "known = self.context.get_id(), self.context.get_instance_id(), task.get_uuid()\n"
    answer += "answer = json.dumps([self.description, *known])"
    one, other = [json.loads(text) for text in await asyncio.gather(room.ask(answer), room.ask(answer))]
    assert one[:3] == [description, "obedient-1", UID]
    assert one[3] != other[3]
    names = ("MINE", "OMP_NUM_THREADS", "REDHARE_MODEL_NAME", "REDHARE_MODEL_PATH", "CUDA_VISIBLE_DEVICES")
    environment = json.loads(await room.ask(f"answer = json.dumps([os.environ.get(name) for name in {names}])"))
    assert environment == ["1", "3", "obedient", str(room.folder), ""]
    assert not json.loads(
        await room.ask("answer = json.dumps([n for n in os.environ if n.startswith(('DLMESH', 'PG'))])")
    )


async def test_an_answer_that_is_reported_ready_goes_out_at_once(room: Room) -> None:
    await room.start(task_batch_size=2)
    wait_first, open_first = room.gate("first")
    wait, open_gate = room.gate("second")
    first = room.asking(wait_first)
    await room.begun("first")
    ready = room.asking("task.set_output_data('early'); task.report_ready(); task.report_ready()")
    slow = room.asking(wait)
    open_first()
    assert await ready == "early"
    assert not slow.done()
    open_gate()
    assert [await first, await slow] == ["1", "2"]
    assert (room.kernels[0].finished, room.kernels[0].failed) == (3, 0)


async def test_what_a_kernel_raises_is_the_answer_of_those_that_have_none(room: Room) -> None:
    await room.start()
    wait, open_gate = room.gate("first")
    first = room.asking(wait)
    await room.begun("first")
    good, bad, behind = room.asking("pass"), room.asking("raise ValueError('no such thing')"), room.asking("pass")
    open_gate()
    assert await good == "3"
    for one in (bad, behind):
        kind, words = await failure(one)
        assert kind is KernelFailedError
        assert words.startswith("ValueError: no such thing (kernel.py, line ")
    assert await first == "1"
    # It goes on.
    pids = room.pids
    assert await room.ask("pass") == "1"
    assert room.pids == pids


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("answer = None", "the kernel set no output"),
        ("answer = 7", "TypeError: set_output_data() takes a str, not int"),
        ("answer = 'x' * 1001", "its output has 1001 bytes; allowed are 1000"),
        ("answer = 'ä' * 501", "its output has 1002 bytes; allowed are 1000"),
        ("answer = '\\ud800'", "its output is no text"),
    ],
)
async def test_what_is_no_output_is_an_error(room: Room, program: str, words: str) -> None:
    await room.start()
    kind, text = await failure(room.ask(program))
    assert kind is KernelFailedError
    assert words in text
    assert await room.ask("answer = b'x' * 1000") == "x" * 1000


async def test_a_task_that_ends_kernels_fails_and_its_neighbours_do_not(room: Room) -> None:
    await room.start()
    wait, open_gate = room.gate("first")
    first = room.asking(wait)
    await room.begun("first")
    batch = [room.asking(f"answer = '{number}'") for number in range(3)]
    batch.insert(1, room.asking("print('my last words'); os.kill(os.getpid(), signal.SIGKILL)"))
    open_gate()
    kind, words = await failure(batch.pop(1))
    assert kind is KernelFailedError
    assert words == "3 kernels ended over it, the last so: it was ended by SIGKILL; it printed last: my last words"
    assert [await first, *[await one for one in batch]] == ["1", "0", "1", "2"]
    assert await room.ask("answer = self.context.get_id()") == "obedient-4"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os._exit(3)", "it ended itself with exit code 3"),
        ("sys.exit('so long')", "kernel.py ended itself with exit code 1"),
        ("os.write(3, b'\\xff' * 100)", "it sent a frame of 4294967295 bytes; allowed are "),
        ("os.write(3, b'\\0\\2\\0\\1' + bytes(100))", "it sent a frame of 131073 bytes; allowed are 131072"),
        ("os.write(3, b'\\0\\0\\0\\2{]')", "it sent something that is no JSON"),
        (
            """text = b'{"answers": [{"bytes": 70000000}]}'; os.write(3, len(text).to_bytes(4, 'big') + text)""",
            "it sent outputs of 70000000 bytes; allowed are ",
        ),
        (
            """text = b'{"answers": [{"bytes": 1}]}'; os.write(3, len(text).to_bytes(4, 'big') + text + b'\\xff')""",
            "it sent an output that is no UTF-8",
        ),
        ("os.write(3, b'\\0\\0\\0\\2[]')", "it sent something that is no object"),
        ("os.write(3, b'\\0\\0\\0\\2{}')", "it sent something that is no answer"),
        (
            """text = b'{"answers": []}'; os.write(3, len(text).to_bytes(4, 'big') + text)""",
            "it sent something that is no answer",
        ),
        (
            """text = b'{"answers": [{"key": 77}]}'; os.write(3, len(text).to_bytes(4, 'big') + text)""",
            "it answered a task that it does not have",
        ),
        pytest.param(
            *("os.close(3); time.sleep(3600)", "it closed its connection and did not end"), marks=pytest.mark.slow
        ),
    ],
)
async def test_a_kernel_that_ends_or_talks_nonsense_is_replaced(room: Room, program: str, words: str) -> None:
    await room.start()
    kind, text = await failure(room.ask(program))
    assert kind is KernelFailedError
    assert words in text
    assert await room.ask("pass") == "1"


@pytest.mark.slow
async def test_a_batch_that_takes_too_long_costs_only_the_task_that_does(room: Room) -> None:
    await room.start(task_execution_timeout_seconds=2.0)
    wait, open_gate = room.gate("first")
    first = room.asking(wait)
    await room.begun("first")
    good, bad, behind = room.asking("pass"), room.asking("while True: pass"), room.asking("pass")
    open_gate()
    kind, words = await failure(bad)
    assert kind is TaskTimeoutError
    assert words.startswith("the kernel was ended: its batch took longer than 2 s")
    # Nobody's neighbours any more.
    assert [await first, await good, await behind] == ["1", "1", "1"]


async def test_who_does_not_wait_any_more_is_dropped_where_it_waits(room: Room) -> None:
    await room.start()
    wait, open_gate = room.gate("first")
    first = room.asking(wait)
    await room.begun("first")
    mark = "answer = None; Kernel.log('was here')"
    cancelled, late = room.asking(mark), room.asking(mark, timeout_seconds=0.05)
    await until(lambda: room.pools.statistics(UID).pending or late.done())
    cancelled.cancel()
    assert await failure(late) == (TaskTimeoutError, "no answer within 0.05 s")
    statistics = room.pools.statistics(UID)
    assert (statistics.clients, statistics.pending) == (1, 0)
    open_gate()
    assert [await first, await room.ask("pass")] == ["1", "1"]
    assert "was here" not in room.log


async def test_a_kernel_whose_callers_have_all_gone_is_given_up(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", abandoned_seconds=0.0) as room:
        await room.start(task_execution_timeout_seconds=-1)
        assert (await failure(room.ask("time.sleep(3600)", timeout_seconds=0.05)))[0] is TaskTimeoutError
        assert await room.ask("answer = self.context.get_id()") == "obedient-2"


async def test_no_more_waits_than_may(room: Room) -> None:
    await room.start(task_batch_size=1)
    wait, open_gate = room.gate("first")
    tasks = [room.asking(wait), *(room.asking("pass") for _ in range(19))]
    await room.begun("first")
    assert await failure(room.ask("pass")) == (QueueFullError, "20 tasks wait or run; allowed are 20")
    open_gate()
    assert await asyncio.gather(*tasks) == ["1"] * 20


async def test_kernels_come_with_the_queue_and_go_when_it_is_empty(room: Room) -> None:
    wait, open_gate = room.gate("all")
    policy = {"kernel_min": 0, "kernel_max": 3, "task_batch_size": 1, "kernel_delay_release_seconds": 0.0}
    # One has to show that it can start.
    await room.start(**policy)
    await until(lambda: not room.kernels)
    assert room.pools.state(UID) == PoolState(PoolPhase.READY)
    tasks = [room.asking(wait) for _ in range(5)]
    await room.begun("all", times=3)
    statistics = room.pools.statistics(UID)
    assert (statistics.clients, statistics.pending) == (5, 2)
    assert [kernel.status for kernel in room.kernels] == ["busy"] * 3
    pids = room.pids
    open_gate()
    assert await asyncio.gather(*tasks) == ["1"] * 5
    await until(lambda: not room.kernels)
    assert not any(map(is_alive, pids))


async def test_a_model_whose_kernels_have_run_before_need_not_show_it_again(room: Room) -> None:
    await room.pools.ensure(replace(room.launch(kernel_min=0), is_proven=True))
    assert await room.ask("answer = self.context.get_id()") == "obedient-1"


async def test_a_pipe_has_the_next_batch_ready(room: Room) -> None:
    await room.start(task_batch_size=2, task_pipe_size=2)
    wait, open_gate = room.gate("first")
    tasks = [room.asking(wait)]
    await room.begun("first")
    tasks += [room.asking("pass") for _ in range(4)]
    await until(lambda: room.kernels[0].running == 3)
    assert room.pools.statistics(UID).pending == 2
    # What lies ready behind what ends a kernel has not been tried.
    os.kill(room.pids[0], signal.SIGKILL)
    open_gate()
    assert await asyncio.gather(*tasks) == ["1", "2", "2", "2", "2"]


async def test_what_a_kernel_leaves_is_done_by_those_that_are_there(room: Room) -> None:
    await room.start(kernel_min=2, kernel_max=2)
    await until(lambda: [kernel.status for kernel in room.kernels] == ["idle"] * 2)
    # No other one will come.
    room.publish("import time\ntime.sleep(3600)\n")
    wait, open_gate = room.gate("first")
    task = room.asking(f"{wait}answer = self.context.get_id()")
    await room.begun("first")
    busy = [kernel.status for kernel in room.kernels].index("busy")
    os.kill(room.pids[busy], signal.SIGKILL)
    open_gate()
    assert await task == f"obedient-{2 - busy}"


async def test_a_drained_pool_answers_what_it_took_and_takes_no_more(room: Room) -> None:
    await room.start(room.launch(description={"at_end": "print('good bye')"}))
    wait, open_gate = room.gate("first")
    tasks = [room.asking(wait)]
    await room.begun("first")
    tasks.append(room.asking("pass"))
    pids = room.pids
    drains = [asyncio.create_task(room.pools.drain(UID)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await failure(room.ask("pass")))[0] is NotStartedError
    open_gate()
    assert await asyncio.gather(*tasks) == ["1", "1"]
    await asyncio.gather(*drains)
    assert not any(map(is_alive, pids))
    assert room.pools.state(UID).phase is PoolPhase.ABSENT
    assert room.pools.statistics(UID) == PoolStatistics()
    assert "good bye" in room.log
    assert (await failure(room.ask("pass")))[0] is NotStartedError
    await room.start()
    assert await room.ask("pass") == "1"


async def test_a_kernel_that_does_not_shut_down_is_ended(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", shutdown_seconds=0.2) as room:
        await room.start(room.launch(description={"at_end": "time.sleep(3600)"}))
        pids = room.pids
        await room.pools.drain(UID)
        assert pids
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "import no_such_thing\n",
            "ModuleNotFoundError: No module named 'no_such_thing' (kernel.py, line 1, in <module>)",
        ),
        ("def broken(:\n", "SyntaxError: "),
        ("print('that was all')\n", "kernel.py came to its end without Kernel.run()"),
        (
            "import os\nprint('alas', flush=True)\nos._exit(4)\n",
            "it ended itself with exit code 4; it printed last: alas",
        ),
        (OBEDIENT.replace("self.held = []", "1 / 0"), "ZeroDivisionError: division by zero (kernel.py, line "),
    ],
)
async def test_a_model_whose_kernels_cannot_start_fails_with_their_words(room: Room, program: str, words: str) -> None:
    room.publish(program)
    await room.pools.ensure(room.launch(kernel_min=0))
    waiting = room.asking("pass")
    kind, text = await failure(waiting)
    assert kind is KernelFailedError
    assert text.startswith(words)
    assert room.pools.state(UID) == PoolState(PoolPhase.FAILED, text)
    assert await failure(room.ask("pass")) == (KernelFailedError, text)
    # It stays so until it was drained.
    room.publish(OBEDIENT)
    await room.pools.ensure(room.launch())
    assert room.pools.state(UID).phase is PoolPhase.FAILED
    await room.pools.drain(UID)
    await room.start()
    assert await room.ask("pass") == "1"


async def test_a_kernel_that_is_not_ready_in_time_counts_as_failed(room: Room) -> None:
    await room.start(room.launch(description={"at_start": "time.sleep(3600)"}, connection_timeout_seconds=0.3))
    state = room.pools.state(UID)
    assert state == PoolState(PoolPhase.FAILED, "it was not ready within 0.3 s")


async def test_a_kernel_that_says_that_it_failed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "FAILED_SECONDS", 0.05)
    say = """text = b'{"failed": "alas"}'; os.write(3, len(text).to_bytes(4, 'big') + text); time.sleep(3600)"""
    async with kernel_room(tmp_path / "home", start_tries=1) as room:
        await room.start(room.launch(description={"at_start": say}))
        assert room.pools.state(UID) == PoolState(PoolPhase.FAILED, "alas")


async def test_kernels_that_have_run_before_are_tried_for_longer(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", start_tries=2, longest_backoff_seconds=0.01) as room:
        room.publish("1 / 0\n")
        await room.pools.ensure(replace(room.launch(), is_proven=True))
        await until(lambda: any(one.id == "obedient-4" for one in room.pools.statistics(UID).kernels))
        state = room.pools.state(UID)
        assert state.phase is PoolPhase.STARTING
        assert state.reason.startswith("its kernels do not start, and are tried again: ZeroDivisionError")
        room.publish(OBEDIENT)
        assert await room.ask("pass") == "1"
        assert room.pools.state(UID) == PoolState(PoolPhase.READY)
    async with kernel_room(tmp_path / "other", start_tries=2, trouble_seconds=0.0) as room:
        room.publish("1 / 0\n")
        await room.start(replace(room.launch(), is_proven=True))
        assert room.pools.state(UID).phase is PoolPhase.FAILED


async def test_a_place_that_others_need_is_not_held_for_ever(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", max_kernels=1, grace_seconds=0.1) as room:
        await room.start(task_execution_timeout_seconds=NO_LIMIT)
        other = replace(room.launch(kernel_min=0), uid="other", name="other", is_proven=True)
        await room.pools.ensure(other)
        wait, _ = room.gate("never")
        endless = room.asking(wait)
        await room.begun("never")
        assert await room.ask("pass", "other") == "1"
        endless.cancel()


async def test_a_model_without_a_place_says_what_it_waits_for(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", max_kernels=1) as room:
        await room.start()
        await room.pools.ensure(replace(room.launch(), uid="other", name="other"))
        await until(lambda: "DLMESH_MAX_KERNELS" in room.pools.state("other").reason)
        assert room.pools.state("other").phase is PoolPhase.STARTING
        await room.pools.drain(UID)
        await until(lambda: room.pools.state("other") == PoolState(PoolPhase.READY))


async def test_models_share_what_there_may_be_of_kernels(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", max_kernels=1) as room:
        await room.start()
        other = replace(room.launch(kernel_min=0), uid="other", name="other", is_proven=True)
        await room.pools.ensure(other)
        # The only place goes to whom has a task, and back.
        assert await room.ask("answer = self.context.get_id()", "other") == "other-1"
        assert await room.ask("answer = self.context.get_id()") == "obedient-2"
        # Also from a model that always has more to do.
        tasks = [room.asking("time.sleep(0.02)") for _ in range(50)]
        assert await room.ask("answer = self.context.get_id()", "other") == "other-2"
        assert await asyncio.gather(*tasks)
