"""What base.Engine promises, on every engine of the registry, with real processes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dlmesh_platform.spark_cluster import SparkCluster
from scheduling_service.engines.base import Attempt, Engine, Observation, Phase
from scheduling_service.engines.local import engine as local_engine
from scheduling_service.engines.local import processes, records, watches
from scheduling_service.engines.local.engine import LocalEngine, _spawn_keeper
from scheduling_service.engines.registry import ENGINES, make_engine
from scheduling_service.engines.runner import last_lines
from scheduling_service.engines.spark.engine import SparkEngine
from servicekit.errors import ServiceError
from workerkit.confinement import sizes

# A start on Spark takes ten seconds, and on a busy machine as much as a minute.
DEADLINE_SECONDS = 150


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


class OnCluster(SparkEngine):
    """The engine of a group whose master is the tests' own."""

    def __init__(self, home: Path, cluster: SparkCluster) -> None:
        super().__init__(home)
        self._cluster = cluster

    async def launch(self, attempt: Attempt) -> None:
        reached = {"master_url": self._cluster.master_url, "options": self._cluster.engine_options}
        await super().launch(replace(attempt, **reached))


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "spark")) for name in sorted(ENGINES)])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def engine(request: pytest.FixtureRequest, engine_name: str, tmp_path: Path) -> AsyncIterator[Engine]:
    made: Engine
    if engine_name == "spark":
        made = OnCluster(tmp_path / "home", request.getfixturevalue("spark_cluster"))
    else:
        made = make_engine(engine_name, home=tmp_path / "home", warm_pool=False)
    await made.open()
    yield made
    await made.close()


ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)


async def test_a_gang_runs_once_with_its_environment_and_output_and_another_process_finds_it(
    engine: Engine, engine_name: str, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, sys, time; rank = os.environ['RANK']\n"
        "print(rank, os.environ['WORLD_SIZE'], os.environ['GREETING'], os.getcwd())\n"
        "open('ready' + rank, 'a').write('x')\n"
        "while not os.path.exists('go'): time.sleep(0.02)"
    )
    wanted = attempt(directory, program, ranks=2)
    assert (await engine.observe(directory)).phase is Phase.UNKNOWN
    await asyncio.gather(engine.launch(wanted), engine.launch(wanted))
    await engine.launch(wanted)
    await exists(tmp_path / "ready0")
    await exists(tmp_path / "ready1")
    successor = make_engine(engine_name, home=tmp_path / "home", warm_pool=False)
    assert (await until(successor, directory, Phase.RUNNING)).phase is Phase.RUNNING
    (tmp_path / "go").touch()
    for each in (successor, engine):
        seen = await until(each, directory, *ENDED)
        assert seen.phase is Phase.FINISHED
        assert [rank.exit_code for rank in seen.ranks] == [0, 0]
    await engine.launch(wanted)
    assert (await until(engine, directory, *ENDED)).phase is Phase.FINISHED
    for rank in range(2):
        assert (directory / f"rank-{rank}.out").read_text() == f"{rank} 2 hello {tmp_path}\n"
        assert (tmp_path / f"ready{rank}").read_text() == "x"
    await successor.close()


async def test_a_program_that_does_not_exist_fails_with_its_name(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, "", command=["/no/such/program"]))
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is Phase.FAILED
    assert "/no/such/program" in (directory / "rank-0.err").read_text()


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
    # What it was ended with is not why.
    assert not any(rank.is_cause for rank in seen.ranks)


async def test_a_silent_rank_fails_and_is_named(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, time\n"
        "directory, rank = os.environ['HERE'], os.environ['RANK']\n"
        "if rank == '1': open(directory + '/heartbeat-1', 'w').close()\n"
        "while True:\n"
        "    if rank == '0': open(directory + '/heartbeat-0', 'w').close()\n"
        "    if rank == '2': print('.')\n"
        "    time.sleep(0.05)\n"
    )
    environment = {"PATH": os.environ["PATH"], "HERE": str(directory), "PYTHONUNBUFFERED": "1"}
    await engine.launch(attempt(directory, program, ranks=3, max_silent_seconds=1.0, environment=environment))
    seen = await until(engine, directory, *ENDED)
    assert (seen.phase, seen.failed_rank) == (Phase.FAILED, 1)
    assert seen.reason == "rank 1 gave no sign of life for 1 s"
    assert not seen.final
    assert not any(rank.is_cause for rank in seen.ranks)
    await gone(*(rank.pid for rank in seen.ranks))


async def test_a_rank_that_never_says_anything_or_has_finished_may_be_silent_while_another_lives(
    engine: Engine, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, time\nlast = time.monotonic() + 1.5\n"
        "if os.environ['RANK'] == '0': raise SystemExit\n"
        "while time.monotonic() < last:\n"
        "    if os.environ['RANK'] == '1': print('.', flush=True)\n"
        "    time.sleep(0.05)\n"
        "time.sleep(600)\n"
    )
    before = time.monotonic()
    await engine.launch(attempt(directory, program, ranks=3, max_silent_seconds=0.6))
    seen = await until(engine, directory, *ENDED)
    # Not before rank 1 had fallen silent, too; rank 2 had been so for longer, and rank 0 was over.
    assert time.monotonic() - before > 2.0
    assert seen.reason == "rank 2 gave no sign of life for 0.6 s"
    assert seen.ranks[0].exit_code == 0


async def test_a_run_that_fills_its_folder_is_ended_for_good(engine: Engine, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    # What a link leads to is not the run's.
    (tmp_path / "large").write_bytes(b"x" * 8_000_000)
    program = (
        "import os, time\nos.symlink('../large', 'link')\nopen('first', 'wb').write(os.urandom(1_000_000))\n"
        "open('ready', 'w').write('1')\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
        "os.mkdir('deep')\nopen('deep/second', 'wb').write(os.urandom(3_000_000))\ntime.sleep(600)\n"
    )
    directory = tmp_path / "job" / "a1"
    directory.parent.mkdir()
    wanted = attempt(directory, program, working_directory=str(work), max_disk_bytes=3 * 1024 * 1024)
    await engine.launch(wanted)
    await exists(work / "ready")
    assert sizes.held_bytes([work]) < 3 * 1024 * 1024
    (work / "go").touch()
    seen = await until(engine, directory, *ENDED)
    assert (seen.phase, seen.final) == (Phase.FAILED, True)
    # With what the engine itself keeps there.
    assert re.fullmatch(r"the run's folder holds 3\.[89] MiB, allowed are 3 MiB", seen.reason)
    await gone(*(rank.pid for rank in seen.ranks))


async def test_every_rank_says_how_it_ended_and_the_one_that_was_killed_is_the_cause(
    engine: Engine, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    # The keeper sleeps until two have ended, so that it sees both at once.
    program = (
        "import os, signal, sys, time\nrank = os.environ['RANK']\nopen(f'up{rank}', 'w').write(str(os.getpid()))\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "if rank == '0': sys.exit(7)\n"
        "if rank == '1': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "time.sleep(600)\n"
    )
    await engine.launch(attempt(directory, program, ranks=3))
    pids = [int(await exists(tmp_path / f"up{rank}")) for rank in range(3)]
    seen = await until(engine, directory, Phase.RUNNING)
    os.kill(seen.keeper_pid, signal.SIGSTOP)
    (tmp_path / "go").touch()
    await gone(*pids[:2])
    os.kill(seen.keeper_pid, signal.SIGCONT)
    seen = await until(engine, directory, *ENDED)
    assert seen.reason == "rank 1 was ended by SIGSEGV"
    assert [rank.exit_code for rank in seen.ranks] == [7, -signal.SIGSEGV, -signal.SIGTERM]
    assert [rank.is_cause for rank in seen.ranks] == [False, True, False]


@pytest.mark.parametrize("how", ["code 0", "code 3", "stop"])
async def test_fifty_stubborn_children_in_and_out_of_the_group_end_with_the_gang(
    engine: Engine, tmp_path: Path, how: str
) -> None:
    directory = tmp_path / "a1"
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "words = os.open('pids', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "os.write(words, b'%d\\n' % os.getpid())\n"
        "for number in range(50 if os.environ['RANK'] == '1' else 0):\n"
        "    if os.fork() == 0:\n"
        "        if number % 3 == 1: os.setsid()\n"
        "        if number % 3 == 2:\n"
        "            os.setsid()\n"
        "            if os.fork(): os._exit(0)\n"
        "        os.write(words, b'%d\\n' % os.getpid())\n"
        "        time.sleep(600)\n"
        "while len(open('pids').readlines()) < 52: time.sleep(0.02)\n"
        "open('ready', 'w').write('1')\n"
        "if sys.argv[1] == 'code 0': sys.exit(0)\n"
        "if sys.argv[1] == 'code 3' and os.environ['RANK'] == '1': sys.stderr.write('boom'); sys.exit(3)\n"
        "time.sleep(600)\n"
    )
    wanted = attempt(directory, program, ranks=2, grace_seconds=0.2)
    await engine.launch(replace(wanted, command=[*wanted.command, how]))
    await exists(tmp_path / "ready")
    if how == "stop":
        await engine.stop(directory)
    seen = await until(engine, directory, *ENDED)
    assert seen.phase is {"code 0": Phase.FINISHED, "code 3": Phase.FAILED, "stop": Phase.STOPPED}[how]
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 52
    assert [pid for pid in pids if processes.start_time(pid) is not None] == []
    if how == "code 3":
        # One rank that fails ends the others.
        assert (seen.reason, seen.failed_rank) == ("rank 1 exited with code 3", 1)
        assert (directory / "rank-1.err").read_text() == "boom"


def test_a_nearly_full_file_system_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = watches.Disk((tmp_path,), 0)
    full = SimpleNamespace(f_bavail=10 << 20, f_frsize=1, f_blocks=10 << 30)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert disk.warning() == f"the file system of {tmp_path} is nearly full: 10 MiB are free"
    disk._warn_at = 0.0
    assert disk.warning() == ""
    full.f_bavail = 9 << 30
    assert watches.Disk((tmp_path,), 0).warning() == ""


def test_a_folder_inside_another_and_a_second_name_count_once(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(os.urandom(100_000))
    once = sizes.held_bytes([tmp_path])
    os.link(tmp_path / "inside" / "file", tmp_path / "again")
    assert sizes.held_bytes([tmp_path]) == once >= 100_000
    assert watches.Disk((tmp_path / "inside", tmp_path), 1)._folders == [tmp_path]


@pytest.mark.parametrize(
    ("number", "says"), [(12 << 30, "12 GiB"), (1_572_864, "1.5 MiB"), (2048, "2 KiB"), (7, "7 bytes")]
)
def test_sizes_read_well(number: int, says: str) -> None:
    assert sizes.describe_bytes(number) == says


@pytest.mark.parametrize("session", [False, True])
async def test_ranks_and_their_children_die_with_their_keeper_and_the_attempt_is_lost(
    tmp_path: Path, session: bool
) -> None:
    engine = make_engine("local", home=tmp_path / "home", warm_pool=False)
    directory = tmp_path / "a1"
    program = (
        "import os, subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600'], start_new_session={session})\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}'); time.sleep(600)\n"
    )
    environment = {"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory)}
    await engine.launch(attempt(directory, program, environment=environment))
    pids = [int(word) for word in (await exists(tmp_path / "pids")).split()]
    stranger = await asyncio.create_subprocess_exec("sleep", "600", env={"DLMESH_JOB_DIR": f"{directory}0"})
    seen = await until(engine, directory, Phase.RUNNING)
    os.kill(seen.keeper_pid, signal.SIGKILL)
    assert (await until(engine, directory, *ENDED)).phase is Phase.LOST
    await gone(*pids)
    assert processes.start_time(stranger.pid) is not None
    stranger.kill()
    assert await stranger.wait() == -signal.SIGKILL


async def test_an_attempt_is_lost_only_when_nothing_of_it_runs_any_more(tmp_path: Path) -> None:
    engine = make_engine("local", home=tmp_path / "home", warm_pool=False)
    directory = tmp_path / "a1"
    # Children that the kernel needs some time to end.
    program = (
        "import os, time\nheld = bytearray(os.urandom(1 << 20)) * 50\n"
        "for _ in range(10):\n"
        "    if os.fork() == 0: os.setsid(); held[::4096] = bytes(len(held) // 4096); break\n"
        "os.write(os.open('pids', os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'%d\\n' % os.getpid())\n"
        "time.sleep(600)\n"
    )
    environment = {"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory)}
    await engine.launch(attempt(directory, program, environment=environment))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(pids := lines_of(tmp_path / "pids")) < 11:
            await asyncio.sleep(0.02)
    os.kill((await engine.observe(directory)).keeper_pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await engine.observe(directory)).phase is not Phase.LOST:
            pass
    assert [pid for pid in pids if processes.start_time(int(pid)) is not None] == []


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


RUNS = "open('runs', 'a').write('x')"


async def late_keeper(directory: Path) -> None:
    """One that a killed service had started, which only now gets to run."""
    pid = _spawn_keeper(directory)
    await asyncio.to_thread(os.waitpid, pid, 0)


async def test_an_attempt_whose_launch_was_cut_off_is_launched_at_once_and_only_once(tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    wanted = attempt(directory, RUNS)
    LocalEngine(tmp_path / "home", warm_pool=False)._write_spec(wanted)
    engine = LocalEngine(tmp_path / "home", warm_pool=False)
    assert (await engine.observe(directory)).phase is Phase.UNKNOWN
    await asyncio.gather(engine.launch(wanted), late_keeper(directory))
    assert (await until(engine, directory, *ENDED)).phase is Phase.FINISHED
    await late_keeper(directory)
    assert (tmp_path / "runs").read_text() == "x"


async def test_an_attempt_that_was_stopped_before_its_keeper_came_never_runs(tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    engine = LocalEngine(tmp_path / "home", warm_pool=False)
    engine._write_spec(attempt(directory, RUNS))
    await engine.stop(directory)
    assert (await engine.observe(directory)).phase is Phase.STOPPED
    await late_keeper(directory)
    assert (await engine.observe(directory)).phase is Phase.STOPPED
    assert not (tmp_path / "runs").exists()


async def test_an_attempt_that_was_given_up_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "a1"
    engine = LocalEngine(tmp_path / "home", warm_pool=False)
    monkeypatch.setattr(local_engine, "_spawn_keeper", lambda _: os.getpid())
    monkeypatch.setattr(local_engine, "START_SECONDS", 0.0)
    await engine.launch(attempt(directory, RUNS))
    # A keeper that is there, if not yet ready, is waited for.
    with (records.folder(directory) / "keeper.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (await engine.observe(directory)).phase is Phase.STARTING
    assert (await engine.observe(directory)).phase is Phase.LOST
    await late_keeper(directory)
    assert not (tmp_path / "runs").exists()


async def test_a_process_of_another_boot_is_not_taken_for_ours(tmp_path: Path) -> None:
    engine = make_engine("local", home=tmp_path / "home", warm_pool=False)
    directory = tmp_path / "a1"
    directory.mkdir()
    mine = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": "another"}
    (records.make(directory) / "keeper.json").write_text(json.dumps(mine))
    assert (await engine.observe(directory)).phase is Phase.LOST


def test_an_unknown_engine_is_refused_with_the_known() -> None:
    with pytest.raises(ServiceError, match="local"):
        make_engine("kubernetes")


@pytest.mark.slow
async def test_warm_ranks_start_fast_and_behave_like_fresh_interpreters(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    engine = make_engine("local", home=tmp_path.with_name(f"{tmp_path.name}-home"), warm_pool=True)
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
        await engine.launch(replace(wanted, command=[*wanted.command, "--x", "1"]))
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


def test_a_warm_pool_whose_service_was_killed_before_it_came_ends_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scheduling_service.engines.local.zygote", str(tmp_path / "warm"), str(os.getppid())]
    assert subprocess.run(words, timeout=30, check=False).returncode == 1
    assert not (tmp_path / "warm").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\nc\n", "b\nc"),
        ("Error: " + "x" * 16_000, "Error: " + "x" * 493 + "..."),
        ("first\n" + "y" * 16_000 + "\nlast", "y" * 500 + "...\nlast"),
        ("", ""),
    ],
)
def test_people_are_shown_as_much_as_they_read(tmp_path: Path, text: str, shown: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_lines(tmp_path / "log", 2) == shown


def test_the_last_lines_are_no_more_than_a_page(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number:0400}\n" for number in range(20)))
    assert [int(line) for line in last_lines(tmp_path / "log", 20).splitlines()] == [15, 16, 17, 18, 19]
