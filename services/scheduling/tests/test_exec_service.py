"""Exec tasks through the whole service in this process, with the real engine and real programs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc, scheduling_pb2, scheduling_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from scheduling_service.exec_frameworks.registry import FRAMEWORKS, make_framework
from scheduling_service.storage.execs import EXECS
from scheduling_service.wiring import LocalSettings, build
from servicekit.database import Database
from testkit.services import ADMIN, ALICE, BOB, acting_as, collect, running, settings_for
from workerkit.confinement.hiding import supported_abi

DEADLINE_SECONDS = 30
ENDED = ("FINISHED", "ERROR", "KILLED")
START = "--exec-start PyTorch --model-main main.py"
BOUNDARY = "b0und4ry"


@asynccontextmanager
async def service(home: Path, database_url: str | None = None, slots: int = 4) -> AsyncIterator[Any]:
    settings = settings_for("scheduling", home, database_url=database_url)
    local = LocalSettings(slots=slots, gpus=0, warm_pool=False, grow_after_seconds=0.0)
    async with running(build(settings, local=local), settings) as client:
        yield SimpleNamespace(
            execs=client.stub(scheduling_pb2_grpc.ExecServiceStub),
            jobs=client.stub(jobs_pb2_grpc.JobServiceStub),
            port=client.port,
        )


def part(content: bytes, *, name: str = "file", filename: str | None = None, kind: str = "") -> bytes:
    shown = f'; filename="{filename}"' if filename is not None else ""
    header = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n'
    return header.encode() + (f"Content-Type: {kind}\r\n" if kind else "").encode() + b"\r\n" + content + b"\r\n"


def requests_of(body: bytes | None, **query: Any) -> list[scheduling_pb2.StartExecRequest]:
    """As Envoy makes them: the query with the first, the body in pieces."""
    if body is None:
        return [scheduling_pb2.StartExecRequest(**query)]
    body += f"--{BOUNDARY}--\r\n".encode()
    pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    first = HttpBody(content_type=f"multipart/form-data; boundary={BOUNDARY}", data=pieces[0])
    rest = [scheduling_pb2.StartExecRequest(body=HttpBody(data=piece)) for piece in pieces[1:]]
    return [scheduling_pb2.StartExecRequest(body=first, **query), *rest]


async def start(platform: Any, program: str | bytes, arguments: str = START, **query: Any) -> Any:
    """A task as alice; `program` is main.py, or a whole body of parts when it is bytes."""
    body = program if isinstance(program, bytes) else part(program.encode(), filename="main.py")
    with acting_as(ALICE):
        return await platform.execs.StartExec(iter(requests_of(body, arguments=arguments, **query)))


async def until(platform: Any, task_id: str, *states: str) -> scheduling_pb2.ExecDetail:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            task = await platform.execs.GetExec(scheduling_pb2.GetExecRequest(id=task_id))
            if task.state in states:
                return task
            await asyncio.sleep(0.02)


async def log_of(platform: Any, task_id: str, log_type: str = "outlog", **more: Any) -> str:
    request = scheduling_pb2.ReadExecLogRequest(id=task_id, log_type=log_type, **more)
    return b"".join([piece.data for piece in await collect(platform.execs.ReadExecLog(request))]).decode()


async def result_of(platform: Any, task_id: str, **more: Any) -> bytes:
    request = scheduling_pb2.ReadExecResultRequest(id=task_id, **more)
    return b"".join([piece.data for piece in await collect(platform.execs.ReadExecResult(request))])


async def ended(platform: Any, *arguments: Any, **query: Any) -> tuple[Any, str]:
    """A task that has ended, and its stdout."""
    task = await until(platform, (await start(platform, *arguments, **query)).id, *ENDED)
    return task, await log_of(platform, task.id)


def packed(files: dict[str, str], mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()


def left_behind(home: Path) -> list[str]:
    """Folders of tasks."""
    return sorted(path.name for path in (home / "execs").iterdir()) if (home / "execs").exists() else []


REPORT = """
import json, os, pathlib, sys
model = pathlib.Path(os.environ["RESULT_DIR"], "model")
(model / "weights.pth").write_text("w")
names = ("DATA_DIR", "DLI_DATA_FS", "RESULT_DIR", "LOG_DIR", "WORLD_SIZE", "RANK", "WMLA_NWORKER", "FRAME_WORK", "MINE")
print(json.dumps({name: os.environ.get(name) for name in names} | {"argv": sys.argv, "cwd": os.getcwd()}))
"""


async def test_a_task_from_its_start_to_its_end(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    async with service(tmp_path, database_url) as platform:
        line = f"{START} --cs-datastore-meta type=fs,data_path=mnist --msd-env MINE=1 --appName first  --epochs   3"
        task = await start(platform, REPORT, line, instance_group="local")
        assert (task.owner, task.instance_group_name) == ("alice", "local")
        # On a busy machine it may run already.
        assert task.state in ("SUBMITTED", "RUNNING")
        assert task.arguments == line
        assert task.id
        assert task.instance_group_id
        assert task.submission_id
        task = await until(platform, task.id, *ENDED)
        assert (task.state, task.status_message) == ("FINISHED", "")
        assert task.finished_at >= task.created_at > "2026"
        folder = tmp_path / "execs" / task.id
        assert json.loads(await log_of(platform, task.id)) == {
            "DATA_DIR": str(tmp_path / "data" / "mnist"),
            "DLI_DATA_FS": str(tmp_path / "data" / "mnist"),
            "RESULT_DIR": str(folder / "results"),
            "LOG_DIR": str(folder / "log"),
            "WORLD_SIZE": "1",
            "RANK": "0",
            "WMLA_NWORKER": "1",
            "FRAME_WORK": "PyTorch",
            "MINE": "1",
            "argv": ["main.py", "--epochs", "3"],
            "cwd": str(folder / "code"),
        }
        with zipfile.ZipFile(io.BytesIO(await result_of(platform, task.id))) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {"weights.pth": b"w"}
        as_json = json.loads(await result_of(platform, task.id, format="json"))
        assert base64.b64decode(as_json["trainResult"]) == await result_of(platform, task.id, format="zip")
        with acting_as(ALICE):
            assert [row.id for row in await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest()))] == [
                task.id
            ]
        await platform.execs.StopExec(scheduling_pb2.StopExecRequest(id=task.id))
        assert (await until(platform, task.id, *ENDED)).state == "FINISHED"


FILES = {"main.py": "import net; print('at', net.here)", "net.py": "import os; here = os.path.basename(os.getcwd())"}


@pytest.mark.parametrize(
    ("body", "arguments", "where"),
    [
        (part(packed(FILES)), START, "code"),
        (part(packed(FILES, "w:gz")), START, "code"),
        (part(packed({f"mnist/{name}": text for name, text in FILES.items()})), START, "mnist"),
        (part(packed({f"mnist/{name}": text for name, text in FILES.items()})), f"{START} --model-dir mnist", "mnist"),
        (part(packed({"a/x": "", **{f"b/{n}": t for n, t in FILES.items()}})), f"{START} --model-dir b", "b"),
        (part(packed(FILES)), f"{START} --model-dir gone", "code"),
        (part(packed(FILES), filename="m.modelDir.tar", kind="application/octet-stream") * 2, START, "code"),
        (part(b"1", name="other") + part(packed(FILES), filename="x"), START, "code"),
        (part(packed({f"s/{name}": text for name, text in FILES.items()} | {"x": ""})),
         "--exec-start PyTorch --model-main s/main.py", "code"),
        (part(b"print('at', 'code')"), START, "code"),
        (part(b"print('at', 'code')", name="main.py"), START, "code"),
        (part(b"print('at', 'code')", filename="C:\\dir\\main.py"), START, "code"),
        (part(b"echo at code", filename="run.sh"), "--exec-start PyTorch --model-main run.sh", "code"),
    ],
)  # fmt: skip
async def test_uploads(tmp_path: Path, body: bytes, arguments: str, where: str) -> None:
    async with service(tmp_path) as platform:
        task, output = await ended(platform, body, arguments)
        assert (task.state, output) == ("FINISHED", f"at {where}\n"), await log_of(platform, task.id, "errlog")


async def test_a_command_needs_no_program(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ALICE):
            line = "--exec-start PyTorch --user-cmd -- bash -c 'echo $RANK; exit 3'"
            task = await platform.execs.StartExec(iter(requests_of(None, arguments=line)))
        task = await until(platform, task.id, *ENDED)
        assert (task.state, task.status_message) == ("ERROR", "rank 0 exited with code 3\n0")
        assert await log_of(platform, task.id) == "0\n"


@pytest.mark.parametrize(
    ("body", "arguments", "query", "says"),
    [
        (part(b"x"), "--exec-start Torch --model-main main.py", {}, "--exec-start: 'Torch'.*PyTorch, distPyTorch"),
        (part(b"x"), START, {"instance_group": "moon"}, "sigName: 'moon'.*one of local"),
        (part(b"x"), f"{START} --ig moon", {}, "--ig: 'moon'.*one of local"),
        (part(b"x"), f"{START} --ig moon", {"instance_group": "local"}, "--ig: 'moon'.*one of local"),
        (part(b"x"), f"{START} --x 'open", {}, "args, character 47"),
        (part(b"x"), f"{START} --cs-datastore-meta type=fs,data_path=gone", {}, "data_path: 'gone'"),
        (part(b"x"), f"{START} --cs-datastore-meta type=fs,data_path=out", {}, "data_path: 'out'"),
        (part(b"x"), "--exec-start distPyTorch --model-main main.py --numWorker 5", {}, "numWorker: 5.*1 to 4"),
        (part(b"x"), f"{START} --numWorker 2", {}, "--numWorker: 2.*distPyTorch"),
        (part(b"x"), f"{START} --numPs 1", {}, "--numPs: 1"),
        (part(b"x", filename="other.py"), START, {}, "--model-main: 'main.py'.*holds other.py"),
        (part(packed({"d/Main.py": ""})), START, {}, "--model-main: 'main.py'.*such as Main.py"),
        (part(packed({"../x": ""})), START, {}, "file, member: '../x'.*stay inside"),
        (part(b"x", filename=".."), START, {}, "stay inside"),
        (part(b""), START, {}, "file: .*empty.*one part called file"),
        (b"", START, {}, "file: .*no part"),
        (None, START, {}, "file: ''"),
        (part(b"x"), START, {"priority": 101}, "priority: 101"),
        (part(b"x"), START, {"max_seconds": -1.0}, "maxSeconds: -1"),
        (part(b"x"), START, {"max_seconds": 315_360_001.0}, "maxSeconds: .*0 to 315360000"),
        (part(b"x"), START, {"max_seconds": float("inf")}, "maxSeconds: inf"),
        (part(b"x"), START, {"max_seconds": float("nan")}, "maxSeconds: nan"),
        (part(b"x"), START, {"after": "gone"}, "after: 'gone'"),
    ],
)
async def test_what_is_refused_leaves_nothing(
    tmp_path: Path, body: bytes | None, arguments: str, query: dict[str, Any], says: str
) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / "data" / "out").symlink_to("/etc")
        with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
            await platform.execs.StartExec(iter(requests_of(body, arguments=arguments, **query)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with acting_as(ADMIN):
            assert await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest())) == []
        assert left_behind(tmp_path) == []
        assert not (tmp_path / "jobs").exists()


async def test_ranks_see_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_ADMIN_PASSWORD", "hunter2")
    monkeypatch.setenv("DLMESH_DATABASE_URL", "postgresql://u:p@h/d")
    async with service(tmp_path) as platform:
        _, output = await ended(platform, "import os\nprint(dict(os.environ))")
        names = [name for name in eval(output) if name.startswith("DLMESH_")]
        assert "hunter2" not in output
        assert "postgresql" not in output
        assert [name for name in names if "TOKEN" in name or "SECRET" in name] == ["DLMESH_JOB_TOKEN"]


async def test_a_jobs_token_starts_no_tasks(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        task, output = await ended(platform, "import os\nprint(os.environ['DLMESH_JOB_TOKEN'])")
        worker = (("x-dlmesh-job", task.id), ("x-dlmesh-job-token", output.strip()))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.port}") as channel:
            stub = scheduling_pb2_grpc.ExecServiceStub(channel)
            requests = iter(requests_of(None, arguments="--exec-start PyTorch --user-cmd -- sleep 2"))
            for call in (
                stub.StartExec(requests, metadata=worker),
                stub.GetExec(scheduling_pb2.GetExecRequest(id=task.id), metadata=worker),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match="reports of the job's workers") as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert left_behind(tmp_path) == [task.id]


async def test_tasks_are_private(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        task, _ = await ended(platform, "print(1)")
        calls = {
            "GetExec": scheduling_pb2.GetExecRequest,
            "StopExec": scheduling_pb2.StopExecRequest,
            "DeleteExec": scheduling_pb2.DeleteExecRequest,
            "ReadExecLog": scheduling_pb2.ReadExecLogRequest,
            "ReadExecResult": scheduling_pb2.ReadExecResultRequest,
        }
        for user, task_id, code in (
            (BOB, task.id, grpc.StatusCode.PERMISSION_DENIED),
            (ALICE, "unknown", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            for method, request in calls.items():
                with acting_as(user), pytest.raises(grpc.aio.AioRpcError) as caught:
                    call = getattr(platform.execs, method)(request(id=task_id))
                    await (collect(call) if method.startswith("Read") else call)
                assert caught.value.code() is code
        with acting_as(BOB):
            assert await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest())) == []
        with acting_as(BOB), pytest.raises(grpc.aio.AioRpcError, match="ids of tasks of yours"):
            await platform.execs.StartExec(iter(requests_of(part(b"x"), arguments=START, after=task.id)))


async def test_deleting_hides_at_once_stops_and_removes(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        first = await start(platform, "import time; time.sleep(600)")
        second = await start(platform, "import time; time.sleep(600)")
        await until(platform, second.id, "RUNNING")
        with acting_as(BOB):
            assert (await platform.execs.DeleteAllExecs(scheduling_pb2.DeleteAllExecsRequest())).value == 0
        await platform.execs.DeleteExec(scheduling_pb2.DeleteExecRequest(id=first.id))
        with pytest.raises(grpc.aio.AioRpcError, match="execId"):
            await platform.execs.GetExec(scheduling_pb2.GetExecRequest(id=first.id))
        with acting_as(ALICE):
            assert (await platform.execs.DeleteAllExecs(scheduling_pb2.DeleteAllExecsRequest())).value == 1
            assert await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest())) == []
        async with asyncio.timeout(DEADLINE_SECONDS):
            while left_behind(tmp_path) or [*(tmp_path / "jobs").iterdir()]:
                await asyncio.sleep(0.02)
        ids = [first.id, second.id]
        while (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=ids))).jobs:
            await asyncio.sleep(0.02)


async def test_a_stopped_task_is_killed_and_keeps_its_files(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        task = await start(platform, "import time; print('up', flush=True); time.sleep(600)")
        request = scheduling_pb2.ReadExecResultRequest(id=task.id)
        await until(platform, task.id, "RUNNING")
        with pytest.raises(grpc.aio.AioRpcError, match="no result yet, it is RUNNING") as caught:
            await collect(platform.execs.ReadExecResult(request))
        assert caught.value.code() is grpc.StatusCode.ABORTED
        async for piece in platform.execs.ReadExecLog(
            scheduling_pb2.ReadExecLogRequest(id=task.id, log_type="outlog", follow=True)
        ):
            if piece.data == b"up\n":
                await platform.execs.StopExec(scheduling_pb2.StopExecRequest(id=task.id))
        assert (await until(platform, task.id, *ENDED)).state == "KILLED"
        with zipfile.ZipFile(io.BytesIO(await result_of(platform, task.id))) as archive:
            assert archive.namelist() == []


async def test_logs(tmp_path: Path) -> None:
    program = """
import sys
print("Total iterations: 2\\nhello\\nTimestamp 1700000000000, Iteration 1")
print("Iteration 1: tag train_loss, simple_value 0.5")
print("oh \\u00fc", file=sys.stderr)
"""
    async with service(tmp_path) as platform:
        task, output = await ended(platform, program, f"{START} --conda-env-name x")
        lines = output.splitlines(keepends=True)
        assert lines[1] == "hello\n"
        assert json.loads(await log_of(platform, task.id, "")) == "".join([lines[0], *lines[2:]])
        assert json.loads(await log_of(platform, task.id, "trainlog", tail_lines=1)) == lines[-1]
        errors = "warning: --conda-env-name means nothing here and is left out\noh ü\n"
        assert await log_of(platform, task.id, "errlog") == errors
        assert await log_of(platform, task.id, "ERRLOG", follow=True) == errors
        assert await log_of(platform, task.id, "outlog", tail_lines=2) == "".join(lines[-2:])
        assert await log_of(platform, task.id, "outlog", tail_lines=2, follow=True) == "".join(lines[-2:])
        for wrong in (
            {"log_type": "x"},
            {"rank": 1},
            {"rank": -1},
            {"tail_lines": -1},
            {"log_type": "", "follow": True},
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await log_of(platform, task.id, **{"log_type": "outlog", **wrong})
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_programs_own_metrics_log_comes_first(tmp_path: Path) -> None:
    program = """
from elog import ELog
ELog.open().record("Train", iteration=1, loss=0.5)
if 'm' in __import__('sys').argv:
    from emetrics import EMetrics
    with EMetrics.open() as metrics:
        metrics.record(EMetrics.TEST_GROUP, 3, {"loss": 0.3})
print("Iteration 1: tag train_loss, simple_value 0.5")
"""
    async with service(tmp_path) as platform:
        task, _ = await ended(platform, program)
        assert "Loss: 0.5" in json.loads(await log_of(platform, task.id, ""))
        task, _ = await ended(platform, program, f"{START} m")
        (line,) = json.loads(await log_of(platform, task.id, "")).splitlines()
        assert json.loads(line)["values"] == {"loss": {"type": 3, "value": "0.3"}}


async def test_logs_hold_no_files_of_others(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    for name in ("stdout", "evaluation-metrics.txt", "rank-0.out"):
        (secret / name).write_text("secret")
    program = f"""
import os, pathlib, shutil
log = pathlib.Path(os.environ["LOG_DIR"])
shutil.rmtree(log)
log.symlink_to({str(secret)!r})
attempt = pathlib.Path(os.environ["DLMESH_JOB_DIR"])
(attempt / "rank-0.out").unlink()
(attempt / "rank-0.out").symlink_to({str(secret / "rank-0.out")!r})
"""
    async with service(tmp_path) as platform:
        task, output = await ended(platform, program)
        assert output == ""
        assert json.loads(await log_of(platform, task.id, "")) == ""
        assert await log_of(platform, task.id, "outlog", tail_lines=3, follow=True) == ""


async def test_a_log_is_followed_over_attempts_until_the_end(tmp_path: Path) -> None:
    program = """
import os, time
print('attempt', os.environ['DLMESH_JOB_ATTEMPT'], flush=True)
if os.environ['DLMESH_JOB_ATTEMPT'] == '1':
    if os.environ['RANK'] == '0':
        raise SystemExit(1)
    time.sleep(600)
while not os.path.exists('go'):
    time.sleep(0.02)
print('last')
"""
    async with service(tmp_path) as platform:
        line = "--exec-start edtPyTorch --model-main main.py --edt-options maxWorkers=2"
        task = await start(platform, program, line)
        seen = b""
        request = scheduling_pb2.ReadExecLogRequest(id=task.id, log_type="outlog", follow=True)
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for piece in platform.execs.ReadExecLog(request):
                seen += piece.data
                if seen.endswith(b"attempt 2\n"):
                    (tmp_path / "execs" / task.id / "code" / "go").touch()
        assert seen == b"attempt 1\nattempt 2\nlast\n"
        assert (await until(platform, task.id, *ENDED)).state == "FINISHED"
        # A client that goes away leaves nothing open.
        other = await start(platform, "import time; print('up', flush=True); time.sleep(600)")
        call = platform.execs.ReadExecLog(
            scheduling_pb2.ReadExecLogRequest(id=other.id, log_type="outlog", follow=True)
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for piece in call:
                if piece.data:
                    break
        call.cancel()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while any("rank-0.out" in _target(link) for link in Path("/proc/self/fd").iterdir()):
                await asyncio.sleep(0.05)
        await platform.execs.StopExec(scheduling_pb2.StopExecRequest(id=other.id))
        await until(platform, other.id, *ENDED)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


async def test_results_hold_no_files_of_others(tmp_path: Path) -> None:
    program = """
import os, pathlib
model = pathlib.Path(os.environ["RESULT_DIR"], "model")
(model / "sub").mkdir()
(model / "sub" / "big").write_bytes(bytes(3_000_000))
(model / "random").write_bytes(os.urandom(2_000_000))
(model / "inside").symlink_to("sub/big")
(model / "outside").symlink_to("/etc/passwd")
(model / "folder").symlink_to("/etc")
(model / "circle").symlink_to("circle")
os.mkfifo(model / "pipe")
(model / os.fsdecode(b"caf\\xe9")).write_text("x")
os.utime(model / "sub" / "big", (0, 0))
"""
    async with service(tmp_path) as platform:
        task, _ = await ended(platform, program)
        with zipfile.ZipFile(io.BytesIO(await result_of(platform, task.id))) as archive:
            assert sorted(archive.namelist()) == ["caf\\udce9", "inside", "random", "sub/big"]
            assert archive.read("inside") == bytes(3_000_000)
            # What gets no smaller by packing is not packed, which takes long.
            packed_sizes = {info.filename: info.compress_size for info in archive.infolist()}
            assert packed_sizes["random"] == 2_000_000
            assert packed_sizes["sub/big"] < 100_000
            assert archive.testzip() is None
        # The platform's own zip is out of reach: a program cannot put a link in its place.
        assert sorted(path.name for path in (tmp_path / "execs" / task.id).iterdir()) == [
            *("code", "fabric", "log", "results", "spec.json")
        ]
        whole, _ = await ended(
            platform, "import os, shutil; d = os.environ['RESULT_DIR']; shutil.rmtree(d); os.symlink('/etc', d)"
        )
        with zipfile.ZipFile(io.BytesIO(await result_of(platform, whole.id))) as archive:
            assert archive.namelist() == []


async def test_what_a_kill_left_is_completed_or_removed(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        task, _ = await ended(platform, "print('once')")
        gone, _ = await ended(platform, "print(1)")
    settings = settings_for("scheduling", tmp_path)
    database = Database(settings.database_url, "scheduling")
    async with database.session() as session:
        # Killed behind the row, and behind the hiding.
        await session.execute(sa.text("DELETE FROM jobs WHERE id = :id"), {"id": task.id})
        await session.execute(sa.update(EXECS).where(EXECS.c.id == gone.id).values(is_hidden=True))
    await database.close()
    for name in (".draft-0123", "0123"):
        (tmp_path / "execs" / name / "code").mkdir(parents=True)
        os.utime(tmp_path / "execs" / name, (0, 0))
    (tmp_path / "execs" / ".draft-young").mkdir()
    async with service(tmp_path) as platform:
        assert (await until(platform, task.id, *ENDED)).state == "FINISHED"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while left_behind(tmp_path) != sorted([".draft-young", task.id]):
                await asyncio.sleep(0.02)


async def test_tasks_wait_for_others_and_end_in_time(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        slow = await start(platform, "import time; time.sleep(600)", max_seconds=0.5)
        behind = await start(platform, "print(1)", after=slow.id, priority=3)
        assert (await until(platform, slow.id, *ENDED)).status_message == "ran longer than the allowed 0.5 seconds"
        assert (await until(platform, behind.id, *ENDED)).state in ("ERROR", "KILLED")


RANKS = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ.get('MASTER_PORT', '')[:0])"


async def test_a_gang_has_a_log_for_each_rank(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        task, output = await ended(platform, RANKS, "--exec-start distPyTorch --model-main main.py --numWorker 2")
        assert output.split() == ["0", "2"]
        assert (await log_of(platform, task.id, rank=1)).split() == ["1", "2"]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "plugin"
    folder.mkdir(parents=True)
    facts = {"name": "xgb", "desc": ["Boosting", "--exec-start xgb --depth 3"], "generator": "generate.py"}
    (folder / "framework.json").write_text(json.dumps({**facts, "defaults": {"numWorker": 2}}))
    (folder / "generate.py").write_text(
        "import json, os, sys\nquestion = json.load(sys.stdin)\n"
        "assert not [name for name in os.environ if name.startswith('DLMESH')]\n"
        "words = ['bash', '-c', 'echo $MADE $RANK \"$@\"', 'x', question['task']['program'], *question['arguments']]\n"
        "print(json.dumps({'command': words, 'environment': {'MADE': 'by ' + question['framework']}}))\n"
    )
    return folder


async def install(platform: Any, path: str) -> Any:
    with acting_as(ADMIN):
        return await platform.execs.InstallExecFramework(scheduling_pb2.InstallExecFrameworkRequest(path=path))


async def names(platform: Any) -> list[str]:
    rows = await collect(platform.execs.ListExecFrameworks(scheduling_pb2.ListExecFrameworksRequest()))
    return [row.name for row in rows]


async def test_a_plugin_is_a_framework(tmp_path: Path, plugin: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match="only an administrator"):
            await platform.execs.InstallExecFramework(scheduling_pb2.InstallExecFrameworkRequest(path="plugin"))
        made = await install(platform, "plugin")
        assert (made.name, list(made.descriptions)) == ("xgb", ["Boosting", "--exec-start xgb --depth 3"])
        assert await names(platform) == [*FRAMEWORKS, "xgb"]
        # Changed and installed again, it is replaced; what runs was frozen.
        await install(platform, "plugin")
        task, output = await ended(platform, "print(1)", "--exec-start XGB --model-main main.py --depth '3 4'")
        assert output == "by xgb 0 main.py --depth 3 4\n"
        assert await log_of(platform, task.id, rank=1) == "by xgb 1 main.py --depth 3 4\n"
    async with service(tmp_path) as platform:
        with acting_as(ADMIN):
            await platform.execs.RemoveExecFramework(scheduling_pb2.RemoveExecFrameworkRequest(name="xgb"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await platform.execs.RemoveExecFramework(scheduling_pb2.RemoveExecFrameworkRequest(name="PyTorch"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await names(platform) == [*FRAMEWORKS]
        assert [*(tmp_path / "exec-frameworks").iterdir()] == []


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("framework.json", "{", "framework.json"),
        ("framework.json", "[]", "is an object"),
        ("framework.json", '{"name": "a", "desc": "x"}', "framework.json, generator"),
        ("framework.json", '{"name": "a", "desc": [], "generator": "generate.py"}', "framework.json, desc"),
        ("framework.json", '{"name": "a", "desc": "x", "generator": "../x.py"}', "framework.json, generator"),
        ("framework.json", '{"name": "pytorch", "desc": "x", "generator": "generate.py"}', "not built in"),
        ("framework.json", '{"name": "../a", "desc": "x", "generator": "generate.py"}', "framework.json, name"),
        (
            "framework.json",
            '{"name": "a", "desc": "x", "generator": "generate.py", "defaults": {"numWorker": 0}}',
            "defaults.numWorker",
        ),
    ],
)
async def test_plugins_that_will_not_do(tmp_path: Path, plugin: Path, file: str, text: str, says: str) -> None:
    (plugin / file).write_text(text)
    async with service(tmp_path) as platform:
        with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
            await install(platform, "plugin")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await names(platform) == [*FRAMEWORKS]


async def test_plugins_from_elsewhere(tmp_path: Path, plugin: Path) -> None:
    async with service(tmp_path) as platform:
        for path in ("/etc", "../x", "gone", "", "plugin/generate.py"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await install(platform, path)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (plugin / "link").symlink_to("/etc/passwd")
        with pytest.raises(grpc.aio.AioRpcError, match="without links"):
            await install(platform, "plugin")


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        ("raise SystemExit('no such tree')", "ended with 1: no such tree"),
        ("print('hm')", "no JSON object"),
        ("print('{}')", "no command"),
        ("print('{\"command\": [1]}')", "no command"),
        ('print(\'{"command": ["x"], "environment": {"a=": "b"}}\')', "no environment"),
        ("print('x' * 2_000_000)", "no JSON object"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
    ],
)
async def test_generators_that_fail(
    tmp_path: Path, plugin: Path, generator: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduling_service.exec_frameworks.plugin.GENERATOR_SECONDS", 0.5)
    (plugin / "generate.py").write_text(generator)
    async with service(tmp_path) as platform:
        await install(platform, "plugin")
        with pytest.raises(grpc.aio.AioRpcError, match=says):
            await start(platform, "print(1)", "--exec-start xgb --model-main main.py")
        assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", FRAMEWORKS)
async def test_every_framework_says_what_it_is(tmp_path: Path, name: str) -> None:
    framework = make_framework(name)
    assert framework.name == name
    assert framework.description
    async with service(tmp_path) as platform:
        rows = await collect(platform.execs.ListExecFrameworks(scheduling_pb2.ListExecFrameworksRequest()))
    (row,) = [row for row in rows if row.name == name]
    assert row.framework_version[0].isdigit()
    # The first example is one that works.
    assert row.descriptions[1].startswith(f"--exec-start {name} ")


async def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_EXEC_MAX_UPLOAD_GIB", "0.001")
    monkeypatch.setenv("DLMESH_EXEC_MAX_DISK_GIB", "0.001")
    async with service(tmp_path) as platform:
        for body, says in (
            (part(bytes(2_000_000)), "more than the allowed 1073741 bytes"),
            (part(b"x", name="a") + part(bytes(900_000), name="b") * 4, "file: .*at most 1073741 bytes"),
            (part(packed({"main.py": "", "zeros": "0" * 1_500_000}, "w:gz")), "at most 1073741 bytes unpacked"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=says):
                await start(platform, body)
        assert left_behind(tmp_path) == []
        fills = "import os, time\nopen('large', 'wb').write(os.urandom(2_200_000))\ntime.sleep(600)"
        task = await until(platform, (await start(platform, fills)).id, *ENDED)
        assert (task.state, "the run's folder holds" in task.status_message) == ("ERROR", True)


async def test_programs_reach_no_other_tasks_and_change_no_plugin(tmp_path: Path, plugin: Path) -> None:
    if not supported_abi():
        pytest.skip("this kernel has no Landlock")
    program = """
import os, pathlib, sys
home = pathlib.Path(os.environ["JOB_STATE_DIR"]).parents[1]
for path in (home / "execs" / sys.argv[1] / "code" / "main.py", home / "exec-frameworks" / "xgb" / "generate.py"):
    for mode in "ra":
        try:
            path.open(mode).close()
            print(path.name, mode)
        except PermissionError:
            pass
"""
    async with service(tmp_path) as platform:
        await install(platform, "plugin")
        other, _ = await ended(platform, "print(1)")
        task, output = await ended(platform, program, f"{START} {other.id}")
        assert (task.state, output) == ("FINISHED", "generate.py r\n"), await log_of(platform, task.id, "errlog")
