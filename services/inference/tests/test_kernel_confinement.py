"""What kernels cannot reach, cannot take and cannot leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from inference_service.kernels.domain.pools import GpuUse, KernelFailedError, KernelLimits, PoolPhase, PoolState
from inference_service.kernels.engine.nursery import CONFINEMENT
from inference_service.kernels.engine.starter import HOST
from kernel_room import UID, Room, failure, is_alive, kernel_room, until
from workerkit.confinement import hiding

NOBODY, SYSTEM_PYTHON = "nobody", "/usr/bin/python3"
MIB = 1024**2
READABLE = all(folder.stat().st_mode & 0o005 == 0o005 for folder in HOST.resolve().parents)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run kernels as another user")
with_landlock = pytest.mark.skipif(not hiding.supported_abi(), reason="this kernel has no Landlock")
# Starts what leaves its session and outlives its parent; the output is its pid.
LEAVE = """
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    pid = os.fork()
    if pid == 0:
        time.sleep(3600)
    os.write(writer, str(pid).encode())
    os._exit(0)
answer = os.read(reader, 100).decode()
"""


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with kernel_room(tmp_path / "home", memory_bytes=200 * MIB, folder_bytes=20 * MIB) as room:
        yield room


def attempts(**expressions: str) -> str:
    """A program whose output is what came of each expression, as JSON."""
    lines = ["found = {}", f"for name, expression in {expressions!r}.items():"]
    lines += ["    try: found[name] = repr(eval(expression))[:300]"]
    lines += ["    except BaseException as error: found[name] = type(error).__name__"]
    return "\n".join([*lines, "answer = json.dumps(found)"])


@with_landlock
async def test_a_kernel_reads_no_secret_and_changes_nothing_but_its_own_folder(room: Room) -> None:
    (room.home / "secret").write_text("hidden")
    (room.home / "db").mkdir()
    (room.home / "db" / "inference.sqlite").write_text("hidden")
    (room.folder / "labels.txt").write_text("cat")
    other = room.folder.parent.parent / "other" / "model" / "kernel.py"
    other.parent.mkdir(parents=True)
    other.write_text("hidden")
    (room.home / "data").mkdir()
    (room.home / "data" / "table.csv").write_text("1,2")
    await room.start()
    service = os.getpid()
    found = json.loads(
        await room.ask(
            attempts(
                secret=f"open({str(room.home / 'secret')!r}).read()",
                database=f"open({str(room.home / 'db' / 'inference.sqlite')!r}).read()",
                other_model=f"open({str(other)!r}).read()",
                data=f"open({str(room.home / 'data' / 'table.csv')!r}).read()",
                more_data=f"open({str(room.home / 'data' / 'more.csv')!r}, 'w')",
                environment=f"open('/proc/{service}/environ').read()",
                memory=f"open('/proc/{service}/mem')",
                own_program="open('kernel.py', 'a')",
                beside=f"open({str(room.folder / 'new')!r}, 'w')",
                elsewhere=f"open({str(room.gates / 'new')!r}, 'w')",
                shared_memory=f"open('/dev/shm/dlmesh_test_{service}', 'w')",
                device="open('/dev/null', 'w').write('gone')",
                labels="open('labels.txt').read()",
                note="open('note.txt', 'w').write('mine') and open('note.txt').read()",
                temporary="__import__('tempfile').mkstemp()[1].startswith(os.getcwd())",
            )
        )
    )
    hidden = "PermissionError"
    assert found == {
        **{"secret": hidden, "database": hidden, "environment": hidden, "memory": hidden},
        **{"other_model": hidden, "data": "'1,2'", "more_data": hidden},
        **{"own_program": hidden, "beside": hidden, "elsewhere": hidden},
        **{"shared_memory": hidden, "device": "4"},
        **{"labels": "'cat'", "note": "'mine'", "temporary": "True"},
    }


async def test_nothing_is_left_of_a_kernel(room: Room) -> None:
    await room.start()
    work = Path(await room.ask("open('note.txt', 'w').close(); answer = os.getcwd()"))
    stray = int(await room.ask(LEAVE))
    assert is_alive(stray)
    assert work.is_dir()
    await room.pools.drain(UID)
    assert not is_alive(stray)
    assert not work.exists()


async def test_what_a_service_that_was_killed_left_is_removed(room: Room) -> None:
    left = room.folder.parent / "run" / "7"
    left.mkdir(parents=True)
    (left / "kernel.py").symlink_to(room.folder / "kernel.py")
    (left.parent / "kernel.log").write_text("what was said\n")
    await room.start()
    assert not left.exists()
    assert "what was said" in room.log
    assert (room.folder / "kernel.py").is_file()


@pytest.mark.slow
async def test_a_kernel_that_grows_beyond_its_memory_is_replaced(room: Room) -> None:
    await room.start()
    # More than it may hold, and less than an error.
    assert await room.ask("self.held.append(b'x' * (210 << 20))") == "1"
    await until(lambda: room.pools.statistics(UID).kernels[0].status == "ended")
    assert await room.ask("answer = self.context.get_id()") == "obedient-2"


async def test_a_task_that_wants_too_much_memory_at_once_gets_an_error(room: Room) -> None:
    await room.start(replace(room.launch(), limits=KernelLimits(memory_bytes=100 * MIB)))
    kind, words = await failure(room.ask("self.held.append(b'x' * (150 << 20))"))
    assert kind is KernelFailedError
    assert words.startswith("MemoryError: it needs more memory than it may have (kernel.py, line ")
    # What holds so much is not gone on with.
    assert await room.ask("answer = self.context.get_id()") == "obedient-2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words"),
    # A look may come while it writes.
    [
        ("open('big', 'wb').write(b'x' * (30 << 20))", r"its folder held (2[\d.]+|30) MiB; allowed are 20 MiB"),
        (
            "self.big = open('big', 'wb', 0); os.unlink('big'); self.big.write(b'x' * (30 << 20))",
            r"its folder held (2[\d.]+|30) MiB; allowed are 20 MiB",
        ),
        (
            "self.big = open(os.memfd_create('big'), 'wb', 0)\nfor _ in range(21): self.big.write(b'x' * (10 << 20))",
            r"it held 2[01][\d.]+ MiB of memory; allowed are 200 MiB",
        ),
    ],
)
async def test_a_kernel_that_fills_the_disk_or_nameless_files_is_ended(
    room: Room, program: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    await room.start()
    assert await room.ask(program) == "1"
    await until(lambda: room.pools.statistics(UID).kernels[0].status == "ended")
    assert re.search(words, caplog.text)


async def test_a_kernel_keeps_to_its_cores(room: Room) -> None:
    await room.start(replace(room.launch(), limits=KernelLimits(cores=0.5)))
    facts = "answer = f'{len(os.sched_getaffinity(0))} {os.environ[\"OMP_NUM_THREADS\"]}'"
    assert await room.ask(facts) == "1 1"


async def test_what_is_printed_without_end_is_kept_in_part(room: Room) -> None:
    await room.start()
    assert await room.ask("for number in range(24000): print('x' * 99)\nprint('the end')") == "1"
    await until(lambda: "the end" in room.log)
    files = list((room.folder.parent / "run").glob("kernel.log*"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 3 * MIB


async def test_a_kernel_that_wants_a_gpu_of_its_own_fails_where_there_is_none(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home") as room:
        room.pools._starter.gpus.names = room.pools._starter.gpus._free = []
        await room.start(replace(room.launch(), gpu=GpuUse.EXCLUSIVE))
        reason = "gpu: exclusive, but this machine has no GPU"
        assert room.pools.state(UID) == PoolState(PoolPhase.FAILED, reason)


async def test_kernels_have_gpus_of_their_own_while_there_are_some(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home") as room:
        room.pools._starter.gpus.names, room.pools._starter.gpus._free = ["0", "1"], ["0", "1"]
        wait, open_gate = room.gate("all")
        policy = {"kernel_max": 3, "task_batch_size": 1}
        await room.start(replace(room.launch(**policy), gpu=GpuUse.EXCLUSIVE))
        tasks = [room.asking(f"{wait}answer = os.environ['CUDA_VISIBLE_DEVICES']") for _ in range(3)]
        await room.begun("all", times=2)
        open_gate()
        assert set(await asyncio.gather(*tasks)) == {"0", "1"}
        assert len(room.kernels) == 2


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Every folder above it can be read by everybody."""
    folder = Path(tempfile.mkdtemp(prefix="dlmesh-kernels-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
@pytest.mark.skipif(not READABLE, reason="others cannot read the code of this checkout")
@pytest.mark.skipif(not Path(SYSTEM_PYTHON).exists(), reason=f"no {SYSTEM_PYTHON}")
async def test_a_kernel_runs_as_its_execution_user(public_folder: Path) -> None:
    async with kernel_room(public_folder / "home") as room:
        # Others may not be able to read ours.
        room.pools._starter.python = SYSTEM_PYTHON
        await room.start(replace(room.launch(), execution_user=NOBODY))
        answer = (
            "open('note', 'w').close(); answer = f'{os.getuid()} {os.environ[\"USER\"]} {os.stat(\"note\").st_uid}'"
        )
        uid = pwd.getpwnam(NOBODY).pw_uid
        assert await room.ask(answer) == f"{uid} {NOBODY} {uid}"


@as_root
@pytest.mark.parametrize(
    ("user", "words"),
    [("no-such-user", "execution user 'no-such-user' is not known"), (NOBODY, "execution user 'nobody' cannot read ")],
)
async def test_a_model_that_cannot_run_as_its_user_fails_at_once(room: Room, user: str, words: str) -> None:
    room.home.parent.chmod(0o700)
    await room.start(replace(room.launch(), execution_user=user))
    state = room.pools.state(UID)
    assert state.phase is PoolPhase.FAILED
    assert words in state.reason
    assert [kernel.id for kernel in room.pools.statistics(UID).kernels] == ["obedient-1"]


SERVICE = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kernel_room import kernel_room

async def main():
    async with kernel_room(Path(sys.argv[1])) as room:
        await room.start()
        stray = int(await room.ask(sys.argv[3]))
        print(json.dumps([stray, *room.pids, *room.pools.pids[""]]), flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_kernels_end_with_the_service_also_when_it_is_killed(tmp_path: Path) -> None:
    words = ["-c", SERVICE, str(tmp_path / "home"), str(Path(__file__).parent), LEAVE]
    service = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    assert service.stdout is not None
    pids = json.loads(await service.stdout.readline())
    assert all(map(is_alive, pids))
    service.kill()
    await service.wait()
    assert len(pids) == 3
    await until(lambda: not any(map(is_alive, pids)))


async def test_kernels_go_on_when_what_starts_them_is_killed_and_others_are_started(room: Room) -> None:
    await room.start()
    [nursery] = room.pools.pids[""]
    os.kill(nursery, signal.SIGKILL)
    await until(lambda: not is_alive(nursery))
    assert await room.ask("answer = self.context.get_id()") == "obedient-1"
    os.kill(room.pids[0], signal.SIGKILL)
    assert (await room.ask("answer = self.context.get_id()")).startswith("obedient-")
    assert room.pools.pids[""] != [nursery]


@pytest.mark.slow
async def test_who_gets_away_from_a_guard_that_is_killed_does_not_hold_its_kernel_up(room: Room) -> None:
    await room.start()
    stray = int(await room.ask(LEAVE))
    [pid] = room.pids
    guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guard, signal.SIGKILL)
    try:
        await until(lambda: not is_alive(pid))
        assert await room.ask("answer = self.context.get_id()") == "obedient-2"
    finally:
        os.kill(stray, signal.SIGKILL)


@pytest.mark.slow
async def test_kernels_that_import_torch_are_forks_of_a_process_that_has_it(tmp_path: Path) -> None:
    async with kernel_room(tmp_path / "home", is_warm=True) as room:
        text = (room.folder / "kernel.py").read_text()
        room.publish("import sys\nwas_there = 'torch' in sys.modules\nimport random, numpy, torch\n" + text)
        await room.start(replace(room.launch(kernel_min=2, kernel_max=2), limits=KernelLimits(cores=1)))
        await until(lambda: [kernel.status for kernel in room.kernels] == ["idle"] * 2)
        wait, open_gate = room.gate("both")
        facts = (
            "[was_there, torch.get_num_threads(), random.random(), float(numpy.random.rand()), float(torch.rand(1))]"
        )
        tasks = [room.asking(f"{wait}answer = json.dumps({facts})")]
        await room.begun("both")
        tasks.append(room.asking(f"{wait}answer = json.dumps({facts})"))
        await room.begun("both", times=2)
        open_gate()
        one, other = [json.loads(await task) for task in tasks]
        assert one[:2] == other[:2] == [True, 1]
        # No two draw the same numbers.
        assert all(mine != theirs for mine, theirs in zip(one[2:], other[2:], strict=True))
        # Its memory does not count what it shares with the other.
        assert await room.ask("answer = str(torch.ones(2, 2).sum().item())") == "4.0"


@pytest.mark.slow
async def test_forks_import_modules_of_their_kernel_also_when_ours_have_the_same_names(tmp_path: Path) -> None:
    ours = [path.stem for folder in (HOST.parent, CONFINEMENT) for path in folder.glob("[!_]*.py")]
    assert {"memory", "sizes", "kernel_host"} <= set(ours)
    async with kernel_room(tmp_path / "home", is_warm=True) as room:
        lines = ["import sys", "was_there = 'torch' in sys.modules", "import torch"]
        for name in ours:
            (room.folder / f"{name}.py").write_text(f"words = '{name} of the kernel'\n")
            lines.append(f"from {name} import words as {name}")
        room.publish("\n".join(lines) + (room.folder / "kernel.py").read_text())
        await room.start()
        answer = await room.ask(f"answer = json.dumps([was_there, {', '.join(ours)}])")
        assert json.loads(answer) == [True, *(f"{name} of the kernel" for name in ours)]
