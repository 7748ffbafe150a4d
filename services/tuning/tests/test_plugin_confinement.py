"""What algorithms that users install cannot reach: the platform's secrets, other studies, their own program."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from plugin_room import Lab, laboratory, processes_with, search, study_of
from tuning_service.suggestions.plugin_process import HOST
from tuning_service.usecases.ports import SuggestionError
from workerkit.confinement import hiding

IS_ROOT = os.geteuid() == 0
NOBODY, SYSTEM_PYTHON = "nobody", "/usr/bin/python3"
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can run algorithms as another user")
with_landlock = pytest.mark.skipif(not hiding.supported_abi(), reason="this kernel has no Landlock")
READABLE = all(folder.stat().st_mode & 0o005 == 0o005 for folder in HOST.resolve().parents)
with_system_python = pytest.mark.skipif(not Path(SYSTEM_PYTHON).exists(), reason=f"no {SYSTEM_PYTHON}")

# Tries every way of the file `ways` in its folder and writes what came of it.
TRYING = "import ctypes, json, multiprocessing, signal, socket, tempfile\n" + search(
    "found = {}",
    "for name, expression in json.load(open('ways')).items():",
    "    try: found[name] = repr(eval(expression))[:300]",
    "    except BaseException as error: found[name] = type(error).__name__ + ': ' + str(error)",
    "json.dump(found, open('found', 'w'))",
    "return [ONE]",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A platform's home with everything that it has."""
    for folder in ("db", "log", "run", "data", "models/m", "jobs/j1", "algorithms/Other", "tuning/other/plugin"):
        (tmp_path / folder).mkdir(parents=True)
    for file in HIDDEN:
        (tmp_path / file).write_text("hidden")
    for file in ("secret", "admin_password"):
        (tmp_path / file).chmod(0o600)
    (tmp_path / "tuning" / "study").mkdir()
    (tmp_path / "tuning" / "study" / "upload").write_text("hidden")
    for file in SHARED:
        (tmp_path / file).write_text("seen")
    return tmp_path


HIDDEN = ("secret", "admin_password", "db/tuning.sqlite", "log/tuning.log", "run/envoy.json", "jobs/j1/spec.json")
HIDDEN += ("tuning/other/upload", "tuning/other/plugin/state-1.pickle", "algorithms/Other/optimizer.py")
SHARED = ("data/images", "models/m/model.py")


@pytest.fixture
async def lab(home: Path) -> AsyncIterator[Lab]:
    async with laboratory(home) as lab:
        yield lab


async def tried(lab: Lab, ways: dict[str, str]) -> dict[str, str]:
    """What became of each way in an algorithm."""
    folder = lab.home / "tuning" / "study" / "plugin"
    folder.mkdir(exist_ok=True)
    (folder / "ways").write_text(json.dumps(ways))
    await lab.ask(lab.install("Trying", TRYING))
    found = json.loads((folder / "found").read_text())
    assert found.keys() == ways.keys()
    return dict(found)


def not_refused(found: dict[str, str]) -> dict[str, str]:
    """Errno 18, of a new name across what differs in rights, is Landlock's as well."""
    refusals = ("PermissionError", "OSError: [Errno 18]")
    return {name: said for name, said in found.items() if not said.startswith(refusals)}


@with_landlock
async def test_what_is_hidden_can_neither_be_read_nor_changed(lab: Lab, home: Path) -> None:
    names = (*HIDDEN, "tuning/study/upload")
    ways = {f"read {name}": f"open({str(home / name)!r}).read()" for name in names}
    ways |= {f"write {name}": f"open({str(home / name)!r}, 'r+')" for name in names}
    ways |= {f"remove {name}": f"os.remove({str(home / name)!r})" for name in names}
    ways |= {f"take {name}": f"os.rename({str(home / name)!r}, 'taken')" for name in names}
    ways |= {f"link {name}": f"os.link({str(home / name)!r}, 'linked')" for name in names}
    ways |= {f"way round {name}": f"open('/proc/self/root{home / name}').read()" for name in names}
    ways |= {"new": f"os.mkdir('{home}/new')", "log": f"open('{home}/tuning/study/plugin.log', 'w')"}
    assert not_refused(await tried(lab, ways)) == {}
    assert {(home / name).read_text() for name in names} == {"hidden"}


@with_landlock
async def test_what_is_shared_and_its_own_program_can_be_read_only(lab: Lab, home: Path, room: Path) -> None:
    own = home / "algorithms" / "Trying"
    ways = {f"write {name}": f"open({str(home / name)!r}, 'r+')" for name in SHARED}
    ways |= {f"remove {name}": f"os.remove({str(home / name)!r})" for name in SHARED}
    ways |= {"program": f"open('{own}/optimizer.py', 'a')", "new": f"open('{own}/new.py', 'w')"}
    ways |= {"replace": f"os.rename('{own}/optimizer.py', '{own}/other.py')"}
    ways |= {"elsewhere": f"open('{home.parent}/elsewhere', 'w')", "machine": f"open('{room}/new', 'w')"}
    ways |= {"platform": f"open({str(Path(__file__))!r}, 'a')"}
    reads = {name: f"open({str(home / name)!r}).read()" for name in SHARED}
    found = await tried(lab, ways | reads)
    assert not_refused(found) == dict.fromkeys(SHARED, "'seen'")
    assert list(room.iterdir()) == []


async def test_it_cannot_look_into_other_processes(lab: Lab) -> None:
    if not IS_ROOT and not hiding.supported_abi():
        pytest.skip("nothing keeps a user from their own processes")
    # The service is this process; what keeps the algorithm is between the two.
    ways = {
        "service": f"open('/proc/{os.getpid()}/environ').read()",
        "memory": f"open('/proc/{os.getpid()}/mem', 'rb').read(1)",
        "files": f"os.listdir('/proc/{os.getpid()}/root/')",
        "guard": "open('/proc/%d/environ' % os.getppid()).read()",
        "guard's memory": "open('/proc/%d/mem' % os.getppid(), 'r+b')",
    }
    assert not_refused(await tried(lab, ways)) == {}


async def test_it_cannot_end_what_keeps_it(lab: Lab) -> None:
    if hiding.supported_abi() < 6:
        pytest.skip("this kernel's Landlock knows nothing of signals")
    ways = {"service": f"os.kill({os.getpid()}, 0)", "guard": "os.kill(os.getppid(), signal.SIGKILL)"}
    assert not_refused(await tried(lab, ways)) == {}


async def test_algorithms_go_on_working(lab: Lab, home: Path) -> None:
    sub = "subprocess.check_output([sys.executable, '-c', 'print(6 * 7)'])"
    ways = {
        "where": "os.getcwd()",
        "own": "(open('a', 'w').write('x'), os.mkdir('sub'), os.rename('a', 'sub/a'), os.remove('sub/a'))",
        "temporary": "(tempfile.NamedTemporaryFile().write(b'x'), tempfile.gettempdir())",
        "home": "open(os.path.expanduser('~/.cached'), 'w').write('x')",
        "device": "open('/dev/null', 'w').write('x')",
        "lock": "multiprocessing.Lock().acquire()",
        "pool": "multiprocessing.get_context('fork').Pool(2).map(abs, [-1, -2])",
        "child": sub,
        "own environ": "len(open('/proc/self/environ').read()) > 0",
        "network": "socket.create_server(('127.0.0.1', 0)).fileno() > 0",
        "library": "__import__('numpy').arange(3).sum()",
    }
    found = await tried(lab, ways)
    assert {name: said for name, said in found.items() if "Error" in said} == {}
    work = str(home / "tuning" / "study" / "plugin")
    assert (found["where"], found["pool"], found["child"]) == (repr(work), "[1, 2]", "b'42\\n'")
    assert repr(work) in found["temporary"]


@with_landlock
async def test_an_interpreter_is_code_of_users_too(home: Path) -> None:
    python = home.parent / "python"
    python.write_text(f"#!/bin/sh\ncat {home}/secret {home}/data/images >&2\nexit 1\n")
    python.chmod(0o755)
    async with laboratory(home, python=str(python)) as lab:
        message = await lab.fails(search("return [ONE]"))
    assert "seen" in message
    assert "Permission denied" in message
    assert "hidden" not in message


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's own are not."""
    base = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="dlmesh-test-", dir=base))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
@with_system_python
@pytest.mark.skipif(not READABLE, reason="this checkout is closed to other users")
async def test_it_runs_as_the_execution_user_of_its_group(room: Path) -> None:
    (room / "secret").write_text("hidden")
    (room / "secret").chmod(0o600)
    async with laboratory(room, python=SYSTEM_PYTHON, user=NOBODY) as lab:
        folder = room / "tuning" / "study" / "plugin"
        folder.mkdir(parents=True)
        ways = {"uid": "os.getuid()", "who": "os.environ['USER']", "secret": f"open('{room}/secret')"}
        found = await tried(lab, ways)
    assert found["uid"] == str(pwd.getpwnam(NOBODY).pw_uid)
    assert found["who"] == repr(NOBODY)
    assert found["secret"].startswith("PermissionError")


@as_root
async def test_an_execution_user_that_is_unknown_fails_the_study(home: Path) -> None:
    async with laboratory(home, user="nobody-of-that-name") as lab:
        with pytest.raises(SuggestionError, match="execution user 'nobody-of-that-name' is not known on this machine"):
            await lab.ask(lab.install("Any", search("return [ONE]")), study=study_of("study"))
        assert not processes_with(str(home))
