"""What programs on the local engine cannot reach: the platform's secrets, other users' files, their own outcome."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scheduling_service.domain.job import Rank
from scheduling_service.engines import outcomes
from scheduling_service.engines.base import Attempt, Engine, Observation, Phase
from scheduling_service.engines.local import processes, records
from scheduling_service.engines.local.engine import LocalEngine, pool_environment, warm_socket
from scheduling_service.engines.runner import JobFiles
from workerkit.confinement import accounts, hiding

ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)
DEADLINE_SECONDS = 20
NOBODY = "nobody"
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can run ranks as another user")
with_landlock = pytest.mark.skipif(not hiding.supported_abi(), reason="this kernel has no Landlock")
# One that every user can read, as ours need not be.
SYSTEM_PYTHON = "/usr/bin/python3"
with_system_python = pytest.mark.skipif(not Path(SYSTEM_PYTHON).exists(), reason=f"no {SYSTEM_PYTHON}")

# Tries every way given as `name: expression` and writes what came of it.
TRIES = """
import ctypes, json, os, pathlib, socket, subprocess, sys, tempfile
found = {}
for name, expression in json.loads(sys.argv[1]).items():
    try:
        found[name] = repr(eval(expression))[:200]
    except BaseException as error:
        found[name] = type(error).__name__ + ': ' + str(error)
pathlib.Path('found.json').write_text(json.dumps(found))
"""


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's own are not, and that does not lie below /tmp."""
    base = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="dlmesh-test-", dir=base))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(room: Path) -> Path:
    """A platform's home with everything that it has."""
    made = room / "home"
    for folder in ("db", "log", "run", "data", "trainings/t1", "jobs/j1", "jobs/other/attempt-1", "inference"):
        (made / folder).mkdir(parents=True)
    for file in ("secret", "admin_password", "db/training.sqlite", "log/training.log", "run/envoy.json"):
        (made / file).write_text("hidden")
    # The others are closed by the folders in which they lie.
    for file in ("secret", "admin_password"):
        (made / file).chmod(0o600)
    (made / "jobs" / "other" / "attempt-1" / "spec.json").write_text("hidden")
    for folder in ("tuning/s1", "tunings/s1"):
        (made / folder).mkdir(parents=True, mode=0o700)
        (made / folder / "upload").write_text("hidden")
    (made / "data" / "images").write_text("seen")
    return made


@pytest.fixture
async def engine(home: Path) -> AsyncIterator[Engine]:
    made = LocalEngine(home, warm_pool=False)
    await made.open()
    yield made
    # Nothing of a test that failed goes on.
    for keeper_file in home.rglob("keeper.json"):
        await made.stop(keeper_file.parent.with_name(keeper_file.parent.name.removeprefix("keeper-")))
    await made.close()


def attempt(home: Path, program: str, *arguments: str, **changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "job_id": "j1",
        "number": 1,
        "directory": home / "jobs" / "j1" / "attempt-1",
        "ranks": 1,
        "gpus_per_rank": 0,
        "command": ["python", "-c", program, *arguments],
        "environment": {"PATH": os.environ["PATH"]},
        "working_directory": str(home / "trainings" / "t1"),
        "grace_seconds": 1.0,
        "max_seconds": 0.0,
        "warm": False,
    }
    return Attempt(**{**values, **changes})


async def run(engine: Engine, wanted: Attempt) -> Observation:
    await engine.launch(wanted)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (seen := await engine.observe(wanted.directory)).phase not in ENDED:
            await asyncio.sleep(0.02)
    return seen


async def tried(engine: Engine, home: Path, ways: dict[str, str], **changes: Any) -> dict[str, str]:
    """What became of each way in a rank."""
    wanted = attempt(home, TRIES, json.dumps(ways), **changes)
    seen = await run(engine, wanted)
    errors = (wanted.directory / "rank-0.err").read_text() if (wanted.directory / "rank-0.err").exists() else ""
    assert seen.phase is Phase.FINISHED, f"{seen.reason}: {errors}"
    return dict(json.loads((Path(wanted.working_directory) / "found.json").read_text()))


HIDDEN = ("secret", "admin_password", "db/training.sqlite", "log/training.log", "run/envoy.json")
# What searches keep, whatever its folder is called, is nobody's but theirs.
HIDDEN += ("jobs/other/attempt-1/spec.json", "tuning/s1/upload", "tunings/s1/upload")


@with_landlock
async def test_what_is_hidden_can_neither_be_read_nor_changed(engine: Engine, home: Path) -> None:
    ways = {f"read {name}": f"open({str(home / name)!r}).read()" for name in HIDDEN}
    ways |= {f"write {name}": f"open({str(home / name)!r}, 'w')" for name in HIDDEN}
    ways |= {f"truncate {name}": f"os.truncate({str(home / name)!r}, 0)" for name in HIDDEN}
    ways |= {f"remove {name}": f"os.remove({str(home / name)!r})" for name in HIDDEN}
    ways |= {f"take {name}": f"os.rename({str(home / name)!r}, 'taken')" for name in HIDDEN}
    ways |= {f"link {name}": f"os.link({str(home / name)!r}, 'linked')" for name in HIDDEN}
    ways |= {f"way round {name}": f"open('/proc/self/root{home / name}').read()" for name in HIDDEN}
    ways |= {"journal": f"open({str(home / 'db' / 'training.sqlite-wal')!r}, 'x')", "new": f"os.mkdir('{home}/x')"}
    ways |= {"child": f"subprocess.run(['cat', {str(home / 'secret')!r}], check=True)"}
    found = await tried(engine, home, ways)
    assert found.pop("child").startswith("CalledProcessError")
    assert {name: text for name, text in found.items() if "Error" not in text} == {}
    assert [(home / name).read_text() for name in HIDDEN] == ["hidden"] * len(HIDDEN)


@with_landlock
async def test_what_triton_serves_is_read_only_but_for_the_predictions_own_folder(engine: Engine, home: Path) -> None:
    served = home / "inference" / "repository" / "m" / "1" / "model.py"
    prediction = home / "inference" / "predictions" / "p"
    for folder in (served.parent, prediction, prediction.with_name("other")):
        folder.mkdir(parents=True)
    served.write_text("ours")
    ways = {
        "read": f"open({str(served)!r}).read()",
        "write": f"open({str(served)!r}, 'a')",
        "redirect": f"open({str(home / 'inference' / 'triton.json')!r}, 'x')",
        "other": f"open({str(prediction.with_name('other') / 'x')!r}, 'x')",
        "own": "open('own', 'x').close()",
        "replace": f"os.replace('own', {str(served)!r})",
    }
    found = await tried(engine, home, ways, working_directory=str(prediction))
    assert found.pop("read") == repr("ours")
    assert found.pop("own") == "None"
    assert {name: text for name, text in found.items() if "Error" not in text} == {}


@with_landlock
async def test_programs_go_on_working(engine: Engine, home: Path, room: Path) -> None:
    """All that is no secret is as it was."""
    (room / "elsewhere").mkdir()
    sub = [sys.executable, "-c", "print(sum(range(10)))"]
    pool = "__import__('multiprocessing').get_context('fork').Pool(2).map(abs, [-1, -2])"
    ways = {
        "data": f"open({str(home / 'data' / 'images')!r}).read()",
        "own": "(open('a', 'w').write('x'), os.rename('a', 'b'), os.mkdir('sub'), os.rename('b', 'sub/b'))",
        "job": f"open({str(home / 'jobs' / 'j1' / 'attempt-1' / 'report.json')!r}, 'w').write('{{}}')",
        "elsewhere": f"os.rename('sub/b', {str(room / 'elsewhere' / 'b')!r})",
        "tmp": "tempfile.NamedTemporaryFile().write(b'x')",
        "shm": "tempfile.NamedTemporaryFile(dir='/dev/shm').write(b'x')",
        "device": "open('/dev/null', 'w').write('x')",
        "random": "len(open('/dev/urandom', 'rb').read(3))",
        "child": f"subprocess.check_output({sub!r})",
        "pool": pool,
        "list": "'proc' in os.listdir('/')",
        "own environ": "len(open('/proc/self/environ').read()) > 0",
        "child environ": "open('/proc/%d/environ' % subprocess.Popen(['sleep', '9'], env={'A': 'b'}).pid).read()",
        "stdout": "open('/dev/stdout', 'w').write('x')",
        "network": "socket.create_server(('127.0.0.1', 0)).fileno() > 0",
    }
    found = await tried(engine, home, ways)
    assert {name: text for name, text in found.items() if "Error" in text} == {}
    assert (found["child"], found["pool"], found["data"]) == ("b'45\\n'", "[1, 2]", "'seen'")
    assert (room / "elsewhere" / "b").read_text() == "x"


async def test_a_rank_cannot_look_into_other_processes(engine: Engine, home: Path) -> None:
    if not IS_ROOT and not hiding.supported_abi():
        pytest.skip("nothing keeps a user from their own processes")
    service = await asyncio.create_subprocess_exec("sleep", "600", env={"DLMESH_ADMIN_PASSWORD": "hunter2"})
    try:
        ways = {
            "environ": f"open('/proc/{service.pid}/environ').read()",
            "memory": f"open('/proc/{service.pid}/mem', 'rb').read(1)",
            "root": f"os.listdir('/proc/{service.pid}/root/')",
            "keeper": "open('/proc/%d/environ' % os.getppid()).read()",
            "open files": f"os.readlink('/proc/{service.pid}/fd/0')",
        }
        assert Path(f"/proc/{service.pid}/environ").read_text() == "DLMESH_ADMIN_PASSWORD=hunter2\0"
        found = await tried(engine, home, ways)
        assert {name: text for name, text in found.items() if not text.startswith("PermissionError")} == {}
    finally:
        service.kill()
        await service.wait()


async def test_a_rank_can_end_its_own_processes_and_no_others(engine: Engine, home: Path) -> None:
    if hiding.supported_abi() < 6:
        pytest.skip("this kernel's Landlock knows nothing of signals")
    service = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        ways = {
            "service": f"os.kill({service.pid}, 9)",
            "keeper": "os.kill(os.getppid(), 9)",
            "own": "[it.kill() or it.wait() for it in [subprocess.Popen(['sleep', '600'], start_new_session=True)]]",
        }
        found = await tried(engine, home, ways)
        assert (found["service"][:15], found["keeper"][:15]) == ("PermissionError", "PermissionError")
        assert found["own"] == "[-9]"
        assert service.returncode is None
    finally:
        service.kill()
        await service.wait()


@as_root
async def test_root_keeps_no_way_round_in_its_ranks(engine: Engine, home: Path) -> None:
    disk = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    ways = {"mount": "subprocess.run(['mount', '-t', 'tmpfs', 'x', '/mnt'], check=True)"}
    ways |= {"device": "os.mknod('disk', 0o600 | 0o60000, os.makedev(254, 0))"}
    if disk is not None and hiding.supported_abi():
        ways |= {"disk": f"open('{disk}', 'rb').read(1)"}
    found = await tried(engine, home, ways)
    assert {name: text for name, text in found.items() if "Error" not in text} == {}


@with_landlock
async def test_temporary_files_work_where_the_home_lies_below_tmp(home: Path, room: Path) -> None:
    # As when TMPDIR is an ancestor of the home.
    engine = LocalEngine(home, warm_pool=False)
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(room)}
    ways = {"file": "(tempfile.NamedTemporaryFile().write(b'x'), tempfile.gettempdir())"}
    found = await tried(engine, home, ways, environment=environment)
    assert f"{room}/dlmesh-rank-" in found["file"]
    assert list(room.glob("dlmesh-rank-*")) == []


@with_landlock
async def test_temporary_files_go_though_their_keeper_was_killed(home: Path, room: Path) -> None:
    engine = LocalEngine(home, warm_pool=False)
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(room)}
    wanted = attempt(home, "import time; time.sleep(600)", environment=environment)
    await engine.launch(wanted)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (records.folder(wanted.directory) / "ranks.json").exists():
            await asyncio.sleep(0.02)
        assert len(list(room.glob("dlmesh-rank-*"))) == 1
        os.kill((await engine.observe(wanted.directory)).keeper_pid, signal.SIGKILL)
        while (await engine.observe(wanted.directory)).phase is not Phase.LOST:
            await asyncio.sleep(0.02)
    assert list(room.glob("dlmesh-rank-*")) == []


@with_landlock
async def test_a_data_root_anywhere_in_the_home_is_reached_but_not_the_home(engine: Engine, home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "file").write_text("seen")
    ways = {"data": f"open({str(home / 'mine' / 'file')!r}).read()", "secret": f"open('{home}/secret').read()"}
    found = await tried(engine, home, ways, data_roots=(home / "mine", home, home.parent, Path("/")))
    assert (found["data"], found["secret"][:15]) == ("'seen'", "PermissionError")


@with_landlock
async def test_a_rank_cannot_write_what_its_keeper_and_the_service_believe(engine: Engine, home: Path) -> None:
    """With them it could have the service, from which nothing is hidden, end any process and open any file."""
    kept, job = home / "jobs" / "j1" / "keeper-attempt-1", home / "jobs" / "j1"
    names = ("spec.json", "keeper.json", "keeper.lock", "ranks.json", "outcome.json", "keeper.log")
    ways = {
        **{f"write {name}": f"open('{kept}/{name}', 'r+')" for name in names},
        **{f"make {name}": f"open('{kept}/{name}', 'w')" for name in names},
        **{f"link {name}": f"os.symlink('{home}/db/training.sqlite', '{kept}/new-{name}')" for name in names},
        **{f"remove {name}": f"os.remove('{kept}/{name}')" for name in names},
        "move": f"os.rename('{kept}', '{kept}-2')",
        "next": f"os.mkdir('{job}/keeper-attempt-2')",
    }
    found = await tried(engine, home, ways)
    # What is not there yet can be neither opened nor removed.
    assert {name: said for name, said in found.items() if "PermissionError" not in said} == {
        name: said for name, said in found.items() if "FileNotFoundError" in said and name.endswith("outcome.json")
    }
    assert (home / "db" / "training.sqlite").read_text() == "hidden"


async def test_a_gang_that_would_work_where_its_records_lie_is_refused(engine: Engine, home: Path) -> None:
    for folder in (home / "jobs", home / "jobs" / "j1"):
        folder.mkdir(exist_ok=True)
        directory = home / "jobs" / "j1" / f"attempt-{folder.name}"
        seen = await run(engine, attempt(home, "", working_directory=str(folder), directory=directory))
        assert (seen.phase, seen.final, "it holds what their keeper records" in seen.reason) == (
            Phase.FAILED,
            True,
            True,
        )


def test_a_lock_is_not_emptied_and_a_link_in_its_place_not_followed(tmp_path: Path) -> None:
    precious, link = tmp_path / "scheduling.db", tmp_path / "keeper.lock"
    precious.write_text("precious")
    assert not records.is_locked(precious)
    link.symlink_to(precious)
    assert not records.is_locked(link)
    assert (precious.read_text(), link.is_symlink()) == ("precious", False)


@pytest.mark.parametrize("content", ["nonsense", "{}", '{"pid": "x", "start_time": 1, "boot_id": "b"}', "[" * 9000])
@pytest.mark.parametrize("name", ["keeper.json", "outcome.json"])
async def test_records_that_are_none_of_ours_end_the_job(engine: Engine, home: Path, name: str, content: str) -> None:
    directory = home / "jobs" / "j1" / "attempt-1"
    (records.make(directory) / name).write_text(content)
    (records.folder(directory) / "spec.json").write_text("{}")
    await engine.stop(directory)
    seen = await engine.observe(directory)
    assert (seen.phase, seen.final, seen.reason) == (Phase.FAILED, True, outcomes.NOT_OURS)
    assert (await engine.describe(directory)).executors == ()


async def test_records_of_ranks_that_are_none_of_ours_hold_up_nobody(engine: Engine, home: Path) -> None:
    directory = home / "jobs" / "j1" / "attempt-1"
    ended = {"pid": 4194303, "start_time": 1, "boot_id": processes.boot_id(), "session": 4194303}
    ended |= {"group": str(home / "db"), "temporary": str(home / "db")}
    (records.make(directory) / "keeper.json").write_text(json.dumps(ended))
    (records.folder(directory) / "ranks.json").write_text('{"ranks": [1, {"rank": 0, "pid": "y"}, {"rank": 0}]}')
    assert (await engine.observe(directory)).phase is Phase.LOST
    assert [path.name for path in (home / "db").iterdir()] == ["training.sqlite"]


async def test_a_program_that_runs_on_after_its_keepers_record_is_gone_is_ended_by_a_stop(
    engine: Engine, home: Path
) -> None:
    directory = home / "jobs" / "j1" / "attempt-1"
    environment = {"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory)}
    await engine.launch(attempt(home, "import time; print(1, flush=True); time.sleep(600)", environment=environment))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (directory / "rank-0.out").exists() or not (directory / "rank-0.out").read_text():
            await asyncio.sleep(0.02)
        (records.folder(directory) / "keeper.json").write_text("nonsense")
        assert (await engine.observe(directory)).phase is Phase.RUNNING
        while (await engine.observe(directory)).phase is Phase.RUNNING:
            await engine.stop(directory)
            await asyncio.sleep(0.02)
    seen = await engine.observe(directory)
    assert (seen.phase, seen.reason) == (Phase.FAILED, "rank 0 was ended by SIGKILL")


async def test_an_attempt_runs_as_long_as_its_keeper_whatever_its_outcome_says(engine: Engine, home: Path) -> None:
    directory = home / "jobs" / "j1" / "attempt-1"
    alive = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": processes.boot_id()}
    said: dict[str, Any] = {"state": "finished", "reason": "", "failed_rank": None, "ranks": []}
    (records.make(directory) / "keeper.json").write_text(json.dumps(alive))
    (records.folder(directory) / "outcome.json").write_text(json.dumps(said))
    assert (await engine.observe(directory)).phase is Phase.RUNNING
    (records.folder(directory) / "keeper.json").write_text(json.dumps({**alive, "boot_id": "another"}))
    assert (await engine.observe(directory)).phase is Phase.FINISHED


@pytest.mark.parametrize(
    "change",
    [
        {"state": "running"},
        {"state": ["finished"]},
        {"reason": 1},
        {"failed_rank": "0"},
        {"failed_rank": True},
        {"final": "no"},
        {"ranks": None},
        {"ranks": [{"rank": 0, "pid": "y", "exit_code": 0}]},
        {"ranks": [{"rank": 0, "pid": 1 << 40, "exit_code": 0}]},
        {"ranks": [{"rank": 0, "pid": 7, "exit_code": 1 << 40}]},
        {"ranks": [{"rank": -1, "pid": 7, "exit_code": 0}]},
    ],
)
def test_an_outcome_of_another_form_is_none_of_ours(change: dict[str, Any]) -> None:
    whole = {"state": "failed", "reason": "r", "failed_rank": 0, "ranks": [{"rank": 0, "pid": 7, "exit_code": None}]}
    assert outcomes.observation_of(whole).ranks == (Rank(0, 7, None),)
    assert outcomes.observation_of({**whole, **change}, driver_id="d") == outcomes.not_ours(driver_id="d")


def test_what_a_record_says_can_be_kept() -> None:
    said: dict[str, Any] = {
        "state": "failed",
        "reason": "\ud800\0" + "r" * 9000,
        "failed_rank": None,
        "ranks": [],
        "id": "\ud800" * 999,
    }
    assert outcomes.observation_of(said).reason.startswith("\ufffd\ufffdrrr")
    assert len(outcomes.observation_of(said).reason) == outcomes.REASON_CHARACTERS
    assert outcomes.name_of(said, "id") == "\ufffd" * outcomes.NAME_CHARACTERS
    assert outcomes.name_of({"id": 1}, "id") == outcomes.name_of(None, "id") == ""


async def test_a_link_in_place_of_an_output_leads_nowhere(engine: Engine, home: Path) -> None:
    """The keeper, from which nothing is hidden, opens it."""
    wanted = attempt(home, "print()", ranks=2)
    wanted.directory.mkdir(parents=True)
    (wanted.directory / "rank-1.out").symlink_to(home / "secret")
    seen = await run(engine, wanted)
    assert (seen.phase, "could not be started" in seen.reason) == (Phase.FAILED, True)
    assert (home / "secret").read_text() == "hidden"


def test_what_a_program_closed_and_nested_goes_with_its_job(tmp_path: Path) -> None:
    folder = tmp_path / "j1" / "attempt-1"
    folder.mkdir(parents=True)
    opened = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=opened)
        inner = os.open("d", os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = inner
    os.close(opened)
    folder.chmod(0)
    JobFiles(tmp_path).remove("j1")
    assert list(tmp_path.iterdir()) == []


def test_the_warm_pool_is_told_no_secret() -> None:
    environ = {
        "PGPASSWORD": "p",
        "DLMESH_ADMIN_PASSWORD": "a",
        "DLMESH_DATABASE_URL": "b",
        "DLMESH_SUPERVISED_HOME": "/h",
        "PATH": "/bin",
    }
    assert pool_environment(environ) == {"DLMESH_SUPERVISED_HOME": "/h", "PATH": "/bin", "DLMESH_WARM_POOL": "1"}


async def test_a_socket_that_a_program_put_in_place_of_the_pool_s_is_told_nothing(home: Path) -> None:
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"started\n")
        writer.close()

    engine = LocalEngine(home, warm_pool=False)
    warm_socket(home).parent.mkdir(exist_ok=True)
    server = await asyncio.start_unix_server(answer, warm_socket(home))
    try:
        engine._pool = SimpleNamespace(pid=os.getppid())  # type: ignore[assignment]
        assert not await engine._launch_warm(home / "jobs" / "j1")
        engine._pool = SimpleNamespace(pid=os.getpid())  # type: ignore[assignment]
        assert await engine._launch_warm(home / "jobs" / "j1")
    finally:
        server.close()
    assert [line for line in asked if line] == [f"{home / 'jobs' / 'j1'}\n".encode()]


@pytest.mark.slow
@with_landlock
async def test_warm_ranks_hide_the_same_and_cannot_ask_the_pool(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DLMESH_ADMIN_PASSWORD", "hunter2")
    engine = LocalEngine(home, warm_pool=True)
    await engine.open()
    try:
        async with asyncio.timeout(60):
            while not warm_socket(home).exists():
                await asyncio.sleep(0.05)
        script = home / "trainings" / "t1" / "main.py"
        script.write_text(TRIES)
        ask = f"(s := socket.socket(socket.AF_UNIX), s.connect({str(warm_socket(home))!r}), s.recv(9))"
        ways = {f"read {name}": f"open({str(home / name)!r}).read()" for name in HIDDEN}
        ways |= {"pool": "open('/proc/%d/environ' % os.getppid()).read()"}
        good = {
            "password": "'hunter2' in open('/proc/self/environ').read()",
            "ask": f"{ask}[-1]",
            "warm": "'deepspeed' in sys.modules",
            "torch": "__import__('torch').ones(3).sum().item()",
            "compile": "__import__('torch').save({}, 'x.pth')",
        }
        command = ["python", str(script), json.dumps(ways | good)]
        found = await tried(engine, home, {}, command=command, warm=True)
        assert {name: found[name] for name in ways if "PermissionError" not in found[name]} == {}
        assert {name: found[name] for name in good} == {
            "password": "False",
            "ask": "b''",
            "warm": "True",
            "torch": "3.0",
            "compile": "None",
        }
    finally:
        await engine.close()


# What follows runs ranks as another user.


@as_root
@with_system_python
async def test_ranks_run_as_their_user_with_what_it_needs(engine: Engine, home: Path) -> None:
    account = pwd.getpwnam(NOBODY)
    ways = {
        "ids": "(os.getresuid(), os.getresgid(), os.getgroups())",
        "names": "[os.environ[name] for name in ('HOME', 'USER', 'LOGNAME')]",
        "write": "(open('mine', 'w').write('x'), os.stat('mine').st_uid)",
        "given": "(open('given', 'a').write('x'), os.stat('given').st_uid)",
        "report": "open(os.environ['DLMESH_JOB_DIR'] + '/report.json', 'w').write('{}')",
        "secret": f"open('{home}/secret').read()",
        "database": f"open('{home}/db/training.sqlite').read()",
        "others": f"os.listdir('{home}/jobs/other/attempt-1')",
        "spec": "open(os.environ['DLMESH_JOB_DIR'] + '/../keeper-attempt-1/spec.json').read()",
        "root": "os.setuid(0)",
        "parent": "os.kill(os.getppid(), 9)",
        "tie": "[ctypes.CDLL(None).prctl(2, ctypes.byref(it), 0, 0, 0) or it.value for it in [ctypes.c_int()]][0]",
        "own": "len(os.listdir('/proc/self/fd')) > 0",
    }
    (home / "jobs" / "other" / "attempt-1").chmod(0o1770)
    (home / "trainings" / "t1" / "given").write_text("x")
    (home / "trainings" / "t1" / "elsewhere").symlink_to(home / "secret")
    os.link(home / "secret", home / "trainings" / "t1" / "second-name")
    directory = home / "jobs" / "j1" / "attempt-1"
    script = home / "trainings" / "t1" / "main.py"
    script.write_text(TRIES)
    found = await tried(
        engine,
        home,
        {},
        command=[SYSTEM_PYTHON, str(script), json.dumps(ways)],
        environment={"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory), "HOME": "/root"},
        execution_user=NOBODY,
    )
    uid, gid = account.pw_uid, account.pw_gid
    assert found["ids"] == repr(((uid,) * 3, (gid,) * 3, os.getgrouplist(NOBODY, gid)))
    expected_home = account.pw_dir if Path(account.pw_dir).is_dir() else str(directory)
    assert found["names"] == repr([expected_home, NOBODY, NOBODY])
    assert (found["write"], found["given"]) == (f"(1, {uid})", f"(1, {uid})")
    assert (found["report"], found["own"], found["tie"]) == ("2", "True", "9")
    for name in ("secret", "database", "others", "spec", "root", "parent"):
        assert "PermissionError" in found[name], (name, found[name])
    # Neither a link nor a second name has made a file elsewhere the user's.
    assert (home / "secret").stat().st_uid == 0
    assert (records.folder(directory) / "outcome.json").stat().st_uid == 0


FORGES = """
import json, os, time
folder = os.environ['DLMESH_JOB_DIR'] + '/../keeper-attempt-1'
found = {}
for name in ('spec.json', 'keeper.json', 'keeper.lock', 'outcome.json', 'ranks.json'):
    for what, way in (('write', lambda path: open(path, 'r+')), ('remove', os.remove),
                      ('replace', lambda path: os.replace('outcome.json', path))):
        open('outcome.json', 'w').write('{"state": "finished", "reason": "", "failed_rank": null, "ranks": []}')
        try:
            way(os.path.join(folder, name))
            found[name + ' ' + what] = True
        except OSError as error:
            found[name + ' ' + what] = False
open('found.json', 'w').write(json.dumps(found))
while not os.path.exists('go'): time.sleep(0.02)
raise SystemExit(3)
"""


@as_root
@with_system_python
async def test_a_rank_of_another_user_cannot_forge_its_outcome(engine: Engine, home: Path) -> None:
    directory, work = home / "jobs" / "j1" / "attempt-1", home / "trainings" / "t1"
    (work / "main.py").write_text(FORGES)
    wanted = attempt(
        home,
        "",
        command=[SYSTEM_PYTHON, "main.py"],
        environment={"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory)},
        execution_user=NOBODY,
    )
    await engine.launch(wanted)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (work / "found.json").exists():
            await asyncio.sleep(0.02)
    found = json.loads((work / "found.json").read_text())
    assert [name for name, worked in found.items() if worked] == []
    assert len(found) == 15
    assert (await engine.observe(directory)).phase is Phase.RUNNING
    (work / "go").touch()
    seen = await run(engine, wanted)
    assert (seen.phase, seen.reason) == (Phase.FAILED, "rank 0 exited with code 3")


async def test_an_unknown_user_is_the_end_and_is_named(engine: Engine, home: Path) -> None:
    seen = await run(engine, attempt(home, "print()", execution_user="no-such-user"))
    assert (seen.phase, seen.final) == (Phase.FAILED, True)
    assert seen.reason == "execution user 'no-such-user' is not known on this machine"


async def test_our_own_user_needs_no_rights(engine: Engine, home: Path) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    seen = await run(engine, attempt(home, "import os; os.stat('.')", execution_user=own))
    assert seen.phase is Phase.FINISHED


def test_only_root_may_run_ranks_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("daemon").pw_uid)
    with pytest.raises(accounts.RefusedError, match="'nobody': the platform runs as daemon, and only root may start"):
        accounts.find_account(NOBODY)
    assert accounts.find_account("daemon") is None
    assert accounts.find_account("") is None


@as_root
async def test_a_closed_folder_on_the_way_is_named(engine: Engine, home: Path) -> None:
    (home / "trainings").chmod(0o700)
    seen = await run(engine, attempt(home, "", command=["true"], execution_user=NOBODY))
    assert (seen.phase, seen.final) == (Phase.FAILED, True)
    assert seen.reason.startswith(f"execution user 'nobody' cannot read {home / 'trainings'}; ranks need {home}")


@as_root
async def test_an_interpreter_that_the_user_cannot_read_is_named(
    engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(os.path.realpath(sys.executable))
    if all(folder.stat().st_mode & 0o001 for folder in real.parents):
        pytest.skip("every user can run this interpreter")
    closed = next(folder for folder in reversed(real.parents) if not folder.stat().st_mode & 0o001)
    seen = await run(engine, attempt(home, "print()", execution_user=NOBODY))
    assert (seen.phase, seen.final) == (Phase.FAILED, True)
    assert f"cannot read {closed}; ranks need {home / 'trainings' / 't1'}, {real}" in seen.reason


def test_what_is_written_whole_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("as it was")
    (tmp_path / "file").symlink_to("target")
    records.write(tmp_path / "file", {"a": 1}, mode=0o600)
    assert (tmp_path / "target").read_text() == "as it was"
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
