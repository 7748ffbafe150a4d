"""Processes of models that take more memory than they may."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from inference_service.triton.memory import ModelMemory

MIB = 1024**2
# As a program does it: a fork holds what is too much.
HOLDS = """
import os, sys, time
if os.fork() == 0:
    held = os.urandom(int(sys.argv[1]))
    print("held", flush=True)
time.sleep(600)
"""
Start = Callable[[int], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(held_bytes: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLDS, str(held_bytes)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def test_what_takes_too_much_is_ended_with_what_it_started(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    modest, greedy = start(1 * MIB), start(100 * MIB)
    # Of the first there are several, as on several GPUs: the limit is of each.
    modest_too = [start(40 * MIB).pid, start(40 * MIB).pid, modest.pid]
    memory = ModelMemory(lambda: {("modest", 1): modest_too, ("greedy", 2): [greedy.pid]}, 60 * MIB)
    await memory.step()
    assert greedy.wait(10) < 0
    assert greedy.stdout is not None
    # The fork holds the other end.
    assert greedy.stdout.read() == b""
    assert modest.poll() is None
    assert re.search(
        r"greedy, version 2, is ended: its process held 1\d\d(\.\d)? MiB of memory; allowed are 60 MiB", caplog.text
    )
    assert "60 MiB (DLMESH_MODEL_MEMORY_BYTES)" in memory.why_ended("greedy")
    assert memory.why_ended("greedy") == memory.why_ended("modest") == ""


async def test_what_has_ended_meanwhile_is_nobody(start: Start) -> None:
    gone, greedy = start(MIB), start(100 * MIB)
    gone.kill()
    gone.wait(10)
    await ModelMemory(lambda: {("both", 1): [gone.pid, greedy.pid]}, 60 * MIB).step()
    assert greedy.wait(10) < 0
    # Nothing is too little for less than nothing: to end it ends nobody.
    await ModelMemory(lambda: {("gone", 1): [gone.pid]}, -1).step()
