"""Kernels are killed and frozen at random while many ask: every task is answered right, or says why not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from inference_service.kernels.domain.pools import KernelFailedError, KernelTask, PoolPhase, TaskTimeoutError
from kernel_room import PATIENCE_SECONDS, UID, Room, kernel_room, until

CALLERS, TASKS = 16, 400
BLOWS = 25
SEED = 20261127

# Each task takes some milliseconds, so that blows meet kernels at work.
PROGRAM = """
import time
import redhareapiversion
from redhareapi import Kernel

class Squares(Kernel):
    def on_task_invoke(self, task_context):
        while task_context is not None:
            number = int(task_context.get_input_data())
            time.sleep(0.004)
            task_context.set_output_data(f"{task_context.get_id()} {number * number}")
            if number % 3 == 0:
                task_context.report_ready()
            task_context = task_context.next()

Squares().run()
"""


@pytest.mark.slow
def test_no_task_is_lost_or_mixed_up(tmp_path: Path) -> None:
    # On the service's event loop.
    uvloop.run(_meet_chaos(tmp_path / "home"))


async def _meet_chaos(home: Path) -> None:
    async with kernel_room(home, longest_backoff_seconds=0.05) as room:
        room.publish(PROGRAM)
        policy = {"kernel_max": 3, "task_batch_size": 4, "task_pipe_size": 2, "task_execution_timeout_seconds": 1.0}
        await room.start(**policy)
        numbers = iter(range(TASKS))
        outcomes: dict[int, str | Exception] = {}
        callers = [asyncio.create_task(call(room, numbers, outcomes)) for _ in range(CALLERS)]
        blows = await strike(room, random.Random(SEED), outcomes)
        await asyncio.gather(*callers)

        assert len(blows) == BLOWS
        assert set(blows) == {signal.SIGKILL, signal.SIGSTOP}
        assert sorted(outcomes) == list(range(TASKS))
        wrong = {
            number: outcome for number, outcome in outcomes.items() if outcome != f"task-{number} {number * number}"
        }
        # Only a task that met three blows, or two that froze its kernel, may have no answer.
        assert all(isinstance(outcome, KernelFailedError | TaskTimeoutError) for outcome in wrong.values()), wrong
        assert len(wrong) <= BLOWS // 2
        statistics = room.pools.statistics(UID)
        assert (statistics.clients, statistics.pending) == (0, 0)
        # And it goes on.
        assert room.pools.state(UID).phase is PoolPhase.READY
        assert await room.ask("12", id="last") == "last 144"


async def call(room: Room, numbers: Iterator[int], outcomes: dict[int, str | Exception]) -> None:
    """One caller: one task after the other."""
    for number in numbers:
        task = KernelTask(f"task-{number}", str(number), timeout_seconds=PATIENCE_SECONDS)
        assert number not in outcomes
        try:
            outcomes[number] = await room.pools.submit(UID, task)
        except Exception as error:
            outcomes[number] = error


async def strike(room: Room, chance: random.Random, outcomes: dict[int, str | Exception]) -> list[signal.Signals]:
    """Meet kernels at work, one whenever some more tasks have ended."""
    blows: list[signal.Signals] = []
    for number in range(1, BLOWS + 1):
        # By what was done, not by the clock: as many blows on a slow machine as on a fast one.
        await until(lambda number=number: len(outcomes) >= number * TASKS // (BLOWS + 5) and room.pids)
        blow = signal.SIGSTOP if chance.random() < 0.2 else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(room.pids), blow)
        blows.append(blow)
    return blows
