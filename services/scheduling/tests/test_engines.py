"""What base.Engine promises, on every engine of the registry, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scheduling_service.engines.base import Attempt, Engine, Observation, Phase
from scheduling_service.engines.local import processes
from scheduling_service.engines.registry import ENGINES, make_engine
from servicekit.errors import ServiceError

DEADLINE_SECONDS = 20


def attempt(directory: Path, program: str, ranks: int = 1, **changes: Any) -> Attempt:
    script = directory.parent / f"{directory.name}.py"
    script.write_text(program)
    values: dict[str, Any] = {
        "job_id": "j1",
        "number": 1,
        "directory": directory,
        "ranks": ranks,
        "gpus_per_rank": 0,
        "command": ["python", str(script)],
        "environment": {"PATH": os.environ["PATH"], "GREETING": "hello"},
        "working_directory": str(directory.parent),
        "grace_seconds": 1.0,
        "max_seconds": 0.0,
        "warm": False,
    }
    return Attempt(**{**values, **changes})


async def until(engine: Engine, directory: Path, *phases: Phase) -> Observation:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (seen := await engine.observe(directory)).phase not in phases:
            await asyncio.sleep(0.02)
    return seen


async def exists(path: Path) -> str:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.02)
    return path.read_text()


async def gone(*pids: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while any(processes.start_time(pid) is not None for pid in pids):
            await asyncio.sleep(0.02)


@pytest.fixture(params=sorted(ENGINES))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    made = make_engine(request.param, home=tmp_path / "home", warm_pool=False)
    await made.open()
    yield made
    await made.close()


ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)


async def test_a_gang_runs_with_its_environment_and_output(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = "import os, sys; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['GREETING'], os.getcwd())"
    assert (await engine.observe(directory)).phase is Phase.UNKNOWN
    await engine.launch(attempt(directory, program, ranks=2))
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is Phase.FINISHED
    assert [rank.exit_code for rank in seen.ranks] == [0, 0]
    for rank in range(2):
        assert (directory / f"rank-{rank}.out").read_text() == f"{rank} 2 hello {tmp_path}\n"


async def test_one_failing_rank_ends_the_gang(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, sys, time\nif os.environ['RANK'] == '1': sys.stderr.write('boom'); sys.exit(3)\ntime.sleep(600)\n"
    )
    await engine.launch(attempt(directory, program, ranks=2))
    seen = await until(engine, directory, *ENDED)
    assert (seen.phase, seen.reason) == (Phase.FAILED, "rank 1 exited with code 3")
    assert seen.failed_rank == 1
    assert (directory / "rank-1.err").read_text() == "boom"
    await gone(*(rank.pid for rank in seen.ranks))


async def test_a_program_that_does_not_exist_fails_with_its_name(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, "", command=["/no/such/program"]))
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is Phase.FAILED
    assert "/no/such/program" in (directory / "rank-0.err").read_text()


async def test_stop_ends_the_whole_tree_also_what_hides_in_a_session_of_its_own(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'], start_new_session=True)\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)\n"
    )
    await engine.launch(attempt(directory, program, grace_seconds=0.2))
    pids = [int(word) for word in (await exists(tmp_path / "pids")).split()]
    await engine.stop(directory)
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is Phase.STOPPED
    await gone(*pids)


async def test_stop_gives_time_for_a_checkpoint(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = (
        "import signal, sys, time\n"
        "def save(*_): open('checkpoint', 'w').write('saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open('ready', 'w').write('1')\n"
        "time.sleep(600)\n"
    )
    await engine.launch(attempt(directory, program, grace_seconds=10))
    await exists(tmp_path / "ready")
    await engine.stop(directory)
    assert (await until(engine, directory, *ENDED)).phase is Phase.STOPPED
    assert (tmp_path / "checkpoint").read_text() == "saved"


async def test_the_time_limit_ends_a_gang(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, "import time; time.sleep(600)", max_seconds=0.2))
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is Phase.FAILED
    assert "longer than the allowed 0.2 seconds" in seen.reason


async def test_launching_again_starts_nothing_twice(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    wanted = attempt(directory, "import os; open('runs', 'a').write('x'); import time; time.sleep(0.3)")
    await asyncio.gather(engine.launch(wanted), engine.launch(wanted))
    await engine.launch(wanted)
    await until(engine, directory, *ENDED)
    await engine.launch(wanted)
    assert (await until(engine, directory, *ENDED)).phase is Phase.FINISHED
    assert (tmp_path / "runs").read_text() == "x"


async def test_another_process_finds_the_gang_again(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = "import os, time\nopen('ready', 'w').write('1')\nwhile not os.path.exists('go'): time.sleep(0.02)"
    await engine.launch(attempt(directory, program))
    await exists(tmp_path / "ready")
    successor = make_engine("local", home=tmp_path / "home", warm_pool=False)
    assert (await successor.observe(directory)).phase is Phase.RUNNING
    (tmp_path / "go").touch()
    assert (await until(successor, directory, *ENDED)).phase is Phase.FINISHED


async def test_local_ranks_die_with_their_keeper_and_the_attempt_is_lost(tmp_path: Path) -> None:
    engine = make_engine("local", home=tmp_path / "home", warm_pool=False)
    directory = tmp_path / "a1"
    await engine.launch(
        attempt(directory, "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    )
    rank = int(await exists(tmp_path / "pid"))
    seen = await until(engine, directory, Phase.RUNNING)
    os.kill(seen.keeper_pid, signal.SIGKILL)
    assert (await until(engine, directory, *ENDED)).phase is Phase.LOST
    await gone(rank)


async def test_a_process_of_another_boot_is_not_taken_for_ours(tmp_path: Path) -> None:
    engine = make_engine("local", home=tmp_path / "home", warm_pool=False)
    directory = tmp_path / "a1"
    directory.mkdir()
    mine = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": "another"}
    (directory / "keeper.json").write_text(json.dumps(mine))
    assert (await engine.observe(directory)).phase is Phase.LOST


def test_an_unknown_engine_is_refused_with_the_known() -> None:
    with pytest.raises(ServiceError, match="local"):
        make_engine("kubernetes")


@pytest.mark.slow
async def test_warm_ranks_start_fast_and_behave_like_fresh_interpreters(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    engine = make_engine("local", home=tmp_path / "home", warm_pool=True)
    await engine.open()
    try:
        async with asyncio.timeout(60):
            while not engine._socket_path().exists():  # type: ignore[attr-defined]
                await asyncio.sleep(0.05)
        directory = tmp_path / "a1"
        program = (
            "import os, sys, time, atexit, torch, torch.distributed as dist\n"
            "assert 'deepspeed' in sys.modules, 'this rank did not start warm'\n"
            "assert sys.argv == [__file__, '--x', '1'] and __name__ == '__main__', sys.argv\n"
            "assert 'DLMESH_HOME' not in os.environ and os.environ['GREETING'] == 'hello'\n"
            "dist.init_process_group('gloo')\n"
            "total = torch.tensor([int(os.environ['RANK']) + 1.0]); dist.all_reduce(total)\n"
            "atexit.register(lambda: print('exit handlers run'))\n"
            "print(total.item())\n"
            "dist.destroy_process_group()\n"
        )
        wanted = attempt(directory, program, ranks=2, warm=True)
        await engine.launch(Attempt(**{**wanted.__dict__, "command": [*wanted.command, "--x", "1"]}))
        seen = await until(engine, directory, *ENDED)
        assert seen.phase is Phase.FINISHED, (directory / "rank-0.err").read_text()
        assert (directory / "rank-1.out").read_text() == "3.0\nexit handlers run\n"

        failing = tmp_path / "a2"
        await engine.launch(attempt(failing, "raise ValueError('of the program')", warm=True))
        seen = await until(engine, failing, *ENDED)
        assert (seen.phase, seen.reason) == (Phase.FAILED, "rank 0 exited with code 1")
        assert "ValueError: of the program" in (failing / "rank-0.err").read_text()

        survivor = tmp_path / "a3"
        await engine.launch(attempt(survivor, "import time; open('up', 'w').write('1'); time.sleep(600)", warm=True))
        await exists(tmp_path / "up")
        await engine.close()
        assert (await engine.observe(survivor)).phase is Phase.RUNNING
        await engine.stop(survivor)
        assert (await until(engine, survivor, *ENDED)).phase is Phase.STOPPED
    finally:
        await engine.close()
