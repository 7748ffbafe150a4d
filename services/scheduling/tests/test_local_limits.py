"""Limits of ranks on the local engine: memory, cores, and what it says of what they take; with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from scheduling_service.engines.base import Attempt, Observation, Phase
from scheduling_service.engines.local import cgroups, keeper, processes, records, usage, watches
from scheduling_service.engines.local.cores import Cores
from scheduling_service.engines.local.descriptions import Descriptions, ask_nvidia_smi
from scheduling_service.engines.local.engine import LocalEngine
from scheduling_service.engines.local.places import Places

MIB = 1 << 20
ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)
DEADLINE_SECONDS = 20
# Takes some memory, says so, and waits for a file.
TAKES = """
import os, sys, time
held = b'x' * (int(sys.argv[1]) << 20)
open('took-' + os.environ['RANK'], 'w').write('1')
while not os.path.exists('go'): time.sleep(0.02)
"""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path.with_name(f"{tmp_path.name}-home"), warm_pool=False)
    await made.open()
    yield made
    # Nothing of a test that failed goes on.
    for keeper_file in tmp_path.rglob("keeper.json"):
        await made.stop(keeper_file.parent.with_name(keeper_file.parent.name.removeprefix("keeper-")))
    await made.close()


def attempt(directory: Path, program: str, *arguments: str, **changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "job_id": "j1",
        "number": 1,
        "directory": directory,
        "ranks": 1,
        "gpus_per_rank": 0,
        "command": ["python", "-c", program, *arguments],
        "environment": {"PATH": os.environ["PATH"]},
        "working_directory": str(directory.parent),
        "grace_seconds": 1.0,
        "max_seconds": 0.0,
        "warm": False,
    }
    return Attempt(**{**values, **changes})


async def ended(engine: LocalEngine, directory: Path) -> Observation:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (seen := await engine.observe(directory)).phase not in ENDED:
            await asyncio.sleep(0.02)
    return seen


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_rank_over_its_memory_ends_and_is_named(engine: LocalEngine, tmp_path: Path) -> None:
    program = (
        "import os, time\nheld = b'x' * (200 << 20 if os.environ['RANK'] == '1' else 1)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, program, ranks=2, memory_bytes_per_rank=100 * MIB))
    seen = await ended(engine, directory)
    assert (seen.phase, seen.failed_rank, seen.final) == (Phase.FAILED, 1, False)
    assert seen.reason == "rank 1 used more than the allowed 100 MiB of memory"
    assert not any(rank.is_cause for rank in seen.ranks)


@pytest.mark.parametrize("session", [False, True])
async def test_what_a_rank_starts_counts_with_it(engine: LocalEngine, tmp_path: Path, session: bool) -> None:
    # Twice 70 MiB in children, one of which has lost its parent: 140 are more than 100, each is less.
    program = (
        "import os, subprocess, sys, time\n"
        "takes = \"held = b'x' * (70 << 20); import time; time.sleep(600)\"\n"
        f"subprocess.Popen([sys.executable, '-c', takes], start_new_session={session})\n"
        "again = 'import subprocess, sys; subprocess.Popen([sys.executable, \"-c\", sys.argv[1]])'\n"
        "subprocess.run([sys.executable, '-c', again, takes])\n"
        "time.sleep(600)"
    )
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, program, memory_bytes_per_rank=100 * MIB))
    assert (await ended(engine, directory)).reason == "rank 0 used more than the allowed 100 MiB of memory"


async def test_memory_that_forks_share_counts_once(engine: LocalEngine, tmp_path: Path) -> None:
    # Four processes that see the same 60 MiB take 60, though the sum of what is resident is 240.
    program = (
        "import os, time\nheld = bytearray(os.urandom(60 << 20))\n"
        "for _ in range(3):\n    if os.fork() == 0: time.sleep(600)\n"
        "open('took', 'w').write('1')\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
    )
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, program, memory_bytes_per_rank=140 * MIB))
    await until((tmp_path / "took").exists)
    # Written by the keeper, which may be behind its rank.
    await until((records.folder(directory) / "ranks.json").exists)
    (rank,) = json.loads((records.folder(directory) / "ranks.json").read_text())["ranks"]

    def resident_bytes() -> int:
        found = usage.snapshot()
        return found.resident_bytes(found.tree(rank["pid"]))

    await until(lambda: resident_bytes() > 200 * MIB)
    keeper_pid = usage.snapshot().processes[rank["pid"]].parent
    assert watches.Memory(140 * MIB, keeper_pid).look({0: rank["pid"]}) is None
    assert watches.Memory(50 * MIB, keeper_pid).look({0: rank["pid"]}) == 0
    (tmp_path / "go").touch()
    assert (await ended(engine, directory)).phase is Phase.FINISHED


def test_looks_at_memory_are_rare_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    now = 0.0

    def look() -> usage.Snapshot:
        nonlocal now
        looks.append(now)
        now += 0.1
        return usage.Snapshot({}, {})

    monkeypatch.setattr(watches.time, "monotonic", lambda: now)
    monkeypatch.setattr(watches.usage, "snapshot", look)
    watch = watches.Memory(1)
    while now < 20:
        watch.look({0: 1})
        now += 0.25
    assert len(looks) == 4
    assert watches.Memory(0).look({0: 1}) is None
    assert len(looks) == 4


async def test_ranks_are_tied_to_cores_of_their_own(engine: LocalEngine, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    program = "import os; open('cores-' + os.environ['RANK'], 'w').write(repr(sorted(os.sched_getaffinity(0))))"
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, program, ranks=2, cores_per_rank=1.0))
    assert (await ended(engine, directory)).phase is Phase.FINISHED
    first, second = (json.loads((tmp_path / f"cores-{rank}").read_text()) for rank in range(2))
    assert len(first) == len(second) == 1
    assert first != second


def test_gangs_share_cores_only_when_there_are_too_few(tmp_path: Path) -> None:
    first = Cores(tmp_path, 2, 1.5, range(8))
    assert first.of_ranks == [{0, 1}, {2, 3}]
    second = Cores(tmp_path, 1, 3.0, range(8))
    assert second.of_ranks == [{4, 5, 6}]
    # One is free, the others are somebody's.
    assert Cores(tmp_path, 1, 2.0, range(8)).of_ranks == [{7, 0}]
    assert Cores(tmp_path, 3, 8.0, range(8)).of_ranks == [frozenset(range(8))] * 3
    first.release()
    assert Cores(tmp_path, 1, 4.0, range(8)).of_ranks == [{0, 1, 2, 3}]


def fake_hierarchy(tmp_path: Path, controllers: str = "cpuset cpu io memory pids") -> tuple[Path, Path, Path]:
    """Plain files that look like a delegated part of cgroup v2; mounts, own group, and the part."""
    root = tmp_path / "cgroup"
    mine = root / "dlmesh.service" / "main"
    mine.mkdir(parents=True)
    for group in (mine, mine.parent):
        _kernel_files(group, controllers)
    # The kernel refuses to hand controllers down from a group that holds processes.
    (mine / "cgroup.subtree_control").unlink()
    (mine / "cgroup.subtree_control").mkdir()
    if os.geteuid() == 0:
        try:
            os.setxattr(mine.parent, "user.delegate", b"1")
        except OSError:
            pytest.skip("the file system of the tests keeps no attributes")
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {root} cgroup2 rw,nosuid 0 0\n")
    own.write_text("1:name=systemd:/x\n0::/dlmesh.service/main\n")
    return mounts, own, mine.parent


def _kernel_files(group: Path, controllers: str) -> None:
    (group / "cgroup.controllers").write_text(controllers)
    for name in ("cgroup.subtree_control", "cgroup.procs"):
        (group / name).touch()


@pytest.fixture
def fake_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups have the kernel's files from their beginning, and lose them with their end."""
    mkdir = Path.mkdir

    def make(path: Path, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        if path.name.startswith(("dlmesh-", "rank-")):
            _kernel_files(path, "cpu memory")

    def remove(path: Path) -> None:
        if any(child.is_dir() for child in path.iterdir()):
            raise OSError("busy")
        for child in path.iterdir():
            child.unlink()
        path.rmdir()

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(cgroups, "_remove_directory", remove)


def test_groups_are_made_below_what_was_delegated_to_us(tmp_path: Path, fake_kernel: None) -> None:
    mounts, own, delegated = fake_hierarchy(tmp_path)
    base = cgroups.find_base(mounts, own)
    assert base == delegated
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert [path.name for path in delegated.iterdir() if path.is_dir()] == ["main"]
    group = cgroups.make(base, "dlmesh-j1-1", 2, 8 << 30, 1.5)
    for rank in range(2):
        of_rank = cgroups.of(group, rank)
        assert (of_rank / "memory.max").read_text() == str(8 << 30)
        assert (of_rank / "memory.swap.max").read_text() == "0"
        assert (of_rank / "memory.oom.group").read_text() == "1"
        assert (of_rank / "cpu.max").read_text() == "150000 100000"
    cgroups.enter(cgroups.of(group, 1))
    assert (group / "rank-1" / "cgroup.procs").read_text() == "0"
    (group / "rank-1" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (group / "rank-0" / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
    assert [cgroups.ran_out_of_memory(cgroups.of(group, rank)) for rank in range(3)] == [False, True, False]
    assert cgroups.remove(group)
    assert not group.exists()
    assert cgroups.remove(group)


def test_without_controllers_there_are_no_groups(tmp_path: Path, fake_kernel: None) -> None:
    mounts, own, _ = fake_hierarchy(tmp_path, controllers="pids")
    assert cgroups.find_base(mounts, own) is None
    mounts, own, delegated = fake_hierarchy(tmp_path / "undelegated")
    if os.geteuid() == 0:
        os.removexattr(delegated, "user.delegate")
        assert cgroups.find_base(mounts, own) is None
    own.write_text("4:memory:/\n")
    assert cgroups.find_base(mounts, own) is None
    assert cgroups.find_base(tmp_path / "nothing", own) is None


def test_the_kernels_kill_names_the_rank_and_the_group_goes(
    tmp_path: Path, fake_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper in this process, with a rank that ends as the kernel ends it."""
    group = fake_hierarchy(tmp_path)[2] / "dlmesh-j1-1"
    directory = tmp_path / "a1"
    directory.mkdir()
    records.make(directory)
    spec = {
        "job_id": "j1",
        "attempt": 1,
        "ranks": 2,
        "command": ["python"],
        "environment": {},
        "working_directory": str(tmp_path),
        "grace_seconds": 1.0,
        "memory_bytes_per_rank": 8 << 30,
        "cores_per_rank": 2,
    }

    def start(spec: dict[str, Any], rank: int, environment: dict[str, str], place: Places) -> int:
        assert (group / f"rank-{rank}" / "memory.max").exists()
        pid = os.fork()
        if pid == 0:
            if rank == 1:
                (group / "rank-1" / "memory.events").write_text("oom_kill 1\n")
                os.kill(os.getpid(), 9)
            time.sleep(600)
        return pid

    monkeypatch.setattr(keeper.signal, "sigtimedwait", lambda *_: time.sleep(0.01))
    monkeypatch.setattr(keeper.processes, "descendants", lambda _: [])
    outcome = keeper._Gang(directory, spec, start, Places(directory, spec), group, None).run()
    assert outcome["state"] == "failed"
    assert outcome["reason"] == "rank 1 used more than the allowed 8 GiB of memory"
    assert (outcome["failed_rank"], outcome["final"]) == (1, False)
    # The kernel killed it, which is the platform's limit.
    assert [rank["is_cause"] for rank in outcome["ranks"]] == [False, False]
    assert not group.exists()


async def test_the_group_of_a_keeper_that_was_killed_goes(
    engine: LocalEngine, tmp_path: Path, fake_kernel: None
) -> None:
    base = fake_hierarchy(tmp_path)[2]
    group = cgroups.make(base, "dlmesh-j1-1", 2, 1 << 30, 0)
    directory = tmp_path / "a1"
    directory.mkdir()
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    facts = {"pid": ended.pid, "start_time": 1, "boot_id": processes.boot_id(), "group": str(group)}
    (records.make(directory) / "keeper.json").write_text(json.dumps(facts))
    assert (await engine.observe(directory)).phase is Phase.LOST
    assert [path.name for path in base.iterdir() if path.is_dir()] == ["main"]


async def test_a_description_holds_what_ranks_take_with_all_they_started(engine: LocalEngine, tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    held = b'x' * (100 << 20)\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "open('up-' + os.environ['RANK'], 'w').write('1')\ntime.sleep(600)"
    )
    directory = tmp_path / "a1"
    await engine.launch(attempt(directory, program, ranks=2))
    await until(lambda: (tmp_path / "up-0").exists() and (tmp_path / "up-1").exists())
    await engine.describe(directory)
    # A look of its own, not the one that is remembered for a page.
    busy_since = time.monotonic()
    await until(lambda: time.monotonic() - busy_since > 1.0)
    facts = await engine.describe(directory)
    busy, idle = facts.executors
    assert 100 < busy.memory_mb < 200
    assert 0.0 < busy.cores_used <= 1.2
    assert (idle.cores_used < busy.cores_used, idle.memory_mb > 1) == (True, True)
    assert (facts.driver.id, facts.driver.cores_used < 0.5, facts.driver.memory_mb > 1) == ("keeper", True, True)
    keeper_pid = json.loads((records.folder(directory) / "keeper.json").read_text())["pid"]
    assert facts.driver.container_id == str(keeper_pid)
    pids = [row["pid"] for row in json.loads((records.folder(directory) / "ranks.json").read_text())["ranks"]]
    assert [rank.container_id for rank in facts.executors] == [str(pid) for pid in pids]
    assert [rank.host for rank in facts.executors] == [facts.driver.host] * 2 == [os.uname().nodename] * 2
    await engine.stop(directory)
    await ended(engine, directory)
    facts = await engine.describe(directory)
    assert [(rank.memory_mb, rank.cores_used) for rank in (facts.driver, *facts.executors)] == [(0.0, 0.0)] * 3
    assert [rank.container_id for rank in facts.executors] == [str(pid) for pid in pids]
    assert facts.executors[1].stdout == str(directory / "rank-1.out")


async def test_an_attempt_that_never_began_is_described_without_numbers(engine: LocalEngine, tmp_path: Path) -> None:
    facts = await engine.describe(tmp_path / "nothing")
    assert facts.executors == ()
    assert facts.driver.memory_mb == 0.0


NVIDIA_SMI = """#!/bin/sh
case "$1" in
*query-gpu*) echo "0, GPU-aa, 1000, 37"; echo "1, GPU-bb, 24, [N/A]"; echo "2, GPU-cc, 512, 90";;
*) echo "GPU-aa, $MINE, 900"; echo "GPU-cc, 4, 500"; echo "what is this";;
esac
"""


def test_gpus_are_asked_for_what_ranks_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("MINE", str(os.getpid()))
    gpus = ask_nvidia_smi(str(program))
    assert gpus.devices == {0: (1000.0, 37.0), 1: (24.0, 0.0), 2: (512.0, 90.0)}
    assert gpus.held == {(0, os.getpid()): 900.0, (2, 4): 500.0}
    descriptions = Descriptions(str(program))
    assert descriptions._gpu_facts({}, 0, {os.getpid()}) == (900.0, 37.0)
    # In a container other pids are known: then its own devices are what a rank holds.
    assert descriptions._gpu_facts({"gpus": [[0], [2]]}, 1, {os.getpid() + 1}) == (512.0, 90.0)
    assert Descriptions(None)._gpu_facts({"gpus": [[0]]}, 0, {1}) == (0.0, 0.0)
    assert ask_nvidia_smi(str(tmp_path / "missing")).devices == {}
