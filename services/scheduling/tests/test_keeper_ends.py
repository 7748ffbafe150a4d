"""The local engine tells of ends without being asked, and costs nothing until then."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scheduling_service.engines.base import Attempt, Phase
from scheduling_service.engines.local import processes
from scheduling_service.engines.local.ends import KeeperEnds
from scheduling_service.engines.local.engine import LocalEngine, warm_socket

DEADLINE_SECONDS = 120


async def told(event: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        await event.wait()
    event.clear()


def attempt(folder: Path, name: str, program: str, **changes: Any) -> Attempt:
    script = folder / f"{name}.py"
    script.write_text(program)
    values: dict[str, Any] = {
        "job_id": name,
        "number": 1,
        "directory": folder / name / "attempt-1",
        "ranks": 1,
        "gpus_per_rank": 0,
        "command": ["python", str(script)],
        "environment": {"PATH": os.environ["PATH"]},
        "working_directory": str(folder),
        "grace_seconds": 1.0,
        "max_seconds": 0.0,
        "warm": False,
    }
    return Attempt(**{**values, **changes})


async def test_the_end_of_any_process_is_told_once(tmp_path: Path) -> None:
    ends, event = KeeperEnds(), asyncio.Event()
    count = 0

    def tell() -> None:
        nonlocal count
        count += 1
        event.set()

    ends.tell = tell
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:  # noqa: ASYNC220
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            ends.watch(child.pid)
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
        assert count == 0
        assert child.stdin is not None
        child.stdin.close()
        await told(event)
        child.wait()
    ends.watch(child.pid)
    await told(event)
    assert count == 2
    ends.watch(os.getpid())
    ends.close()
    assert ends._descriptors == {}


async def test_an_attempt_that_nobody_observes_is_told_of(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    engine, event = LocalEngine(home, warm_pool=False), asyncio.Event()
    engine.on_news(event.set)
    await engine.open()
    wanted = attempt(tmp_path, "j1", "print(1)")
    await engine.launch(wanted)
    await told(event)
    assert (await engine.observe(wanted.directory)).phase is Phase.FINISHED
    await engine.close()


async def test_an_attempt_of_an_earlier_process_is_told_of(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    earlier = LocalEngine(home, warm_pool=False)
    wanted = attempt(tmp_path, "j1", "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)")
    await earlier.launch(wanted)
    await earlier.close()
    engine, event = LocalEngine(home, warm_pool=False), asyncio.Event()
    engine.on_news(event.set)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await engine.observe(wanted.directory)).phase is not Phase.RUNNING:
            await asyncio.sleep(0.02)
    event.clear()
    (tmp_path / "go").touch()
    await told(event)
    earlier._reap()
    assert (await engine.observe(wanted.directory)).phase is Phase.FINISHED
    await engine.close()


LEAVES = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(left.pid)
"""


@pytest.mark.slow
async def test_warm_attempts_are_told_of_once_nothing_of_them_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    engine, event = LocalEngine(home, warm_pool=True), asyncio.Event()
    engine.on_news(event.set)
    await engine.open()
    try:
        async with asyncio.timeout(10 * DEADLINE_SECONDS):
            while not warm_socket(home).exists():
                await asyncio.sleep(0.05)
        for name, program in (("short", "print(0)"), ("leaves", LEAVES)):
            wanted = attempt(tmp_path, name, program, warm=True)
            await engine.launch(wanted)
            await told(event)
            seen = await engine.observe(wanted.directory)
            assert seen.phase is Phase.FINISHED, seen
            assert [rank.exit_code for rank in seen.ranks] == [0]
            left = int((wanted.directory / "rank-0.out").read_text())
            assert not left or processes.start_time(left) is None
    finally:
        await engine.close()
