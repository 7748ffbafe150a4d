"""What is particular to Spark: its ids, kills of its processes, absences of its master, submissions.

The processes are real; only refusals, which a real master does not give on demand, come from a server of our own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.spark_cluster import SparkCluster
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.engines.base import Attempt, Observation, Phase
from scheduling_service.engines.local import records
from scheduling_service.engines.registry import make_engine
from scheduling_service.engines.spark import driver, files, rank, submission
from scheduling_service.engines.spark import engine as spark_engine
from scheduling_service.engines.spark.engine import SparkEngine
from servicekit.errors import ServiceError
from testkit.spark import start_cluster

DEADLINE_SECONDS = 150
ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)
# Says who it is and what it started in a session of its own, then waits for a file.
WAITING = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
name = "pids-" + os.environ["RANK"]
open(name + ".draft", "w").write(f"{os.getpid()} {child.pid}")
os.rename(name + ".draft", name)
print("rank", os.environ["RANK"], "is up", flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
"""


def attempt(directory: Path, program: str = WAITING, ranks: int = 2, **changes: Any) -> Attempt:
    script = directory.parent / f"{directory.name}.py"
    script.write_text(program)
    values: dict[str, Any] = {
        "job_id": "j1",
        "number": 1,
        "directory": directory,
        "ranks": ranks,
        "gpus_per_rank": 0,
        "command": ["python", str(script)],
        "environment": {"PATH": os.environ["PATH"], "DLMESH_JOB_DIR": str(directory), "SECRET": "of-the-job"},
        "working_directory": str(directory.parent),
        "grace_seconds": 1.0,
        "max_seconds": 0.0,
        "warm": False,
        "name": "two ranks",
    }
    return Attempt(**{**values, **changes})


def on(cluster: SparkCluster, wanted: Attempt) -> Attempt:
    return replace(wanted, master_url=cluster.master_url, options=cluster.engine_options)


async def until(engine: SparkEngine, directory: Path, *phases: Phase) -> Observation:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (seen := await engine.observe(directory)).phase not in phases:
            assert seen.phase not in ENDED, seen
            await asyncio.sleep(0.05)
    return seen


async def pids_of(folder: Path, ranks: int = 2) -> list[int]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(list(folder.glob("pids-?"))) < ranks:
            await asyncio.sleep(0.05)
    return [int(word) for number in range(ranks) for word in (folder / f"pids-{number}").read_text().split()]


async def gone(*pids: int) -> None:
    async with asyncio.timeout(30):
        while any(files.processes.start_time(pid) is not None for pid in pids):
            await asyncio.sleep(0.05)


def ask(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SparkEngine]:
    made = make_engine("spark", home=tmp_path / "home", warm_pool=False)
    assert isinstance(made, SparkEngine)
    yield made
    await made.close()


@pytest.mark.slow
async def test_ids_are_sparks_own_and_all_logs_are_there_after_the_end(
    engine: SparkEngine, spark_cluster: SparkCluster, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    await engine.launch(on(spark_cluster, attempt(directory)))
    pids = await pids_of(tmp_path)
    seen = await until(engine, directory, Phase.RUNNING)
    told = await asyncio.to_thread(ask, f"{spark_cluster.master_ui}/json/")
    assert [row["id"] for row in told["activedrivers"]] == [seen.driver_id]
    assert [(row["id"], row["name"]) for row in told["activeapps"]] == [(seen.application_id, "two ranks")]
    # One core a rank, and the driver takes none of them.
    assert sum(worker["coresused"] for worker in told["workers"]) == 2
    async with asyncio.timeout(20):
        while not (facts := await engine.describe(directory)).executors[1].memory_mb:
            await asyncio.sleep(0.2)
    containers = {executor.container_id for executor in facts.executors}
    assert containers == {f"{seen.application_id}/{number}" for number in range(2)}
    assert facts.driver.id == seen.driver_id
    assert facts.driver.memory_mb > 10
    assert await asyncio.to_thread(ask, f"http://127.0.0.1:{facts.ui_port}/api/v1/applications")
    (tmp_path / "go").touch()
    ended = await until(engine, directory, *ENDED)
    assert (ended.phase, ended.application_id, ended.driver_id) == (
        Phase.FINISHED,
        seen.application_id,
        seen.driver_id,
    )
    await gone(*pids)
    facts = await engine.describe(directory)
    assert [Path(executor.stdout).read_text() for executor in facts.executors] == ["rank 0 is up\n", "rank 1 is up\n"]
    assert "WARN" in Path(facts.driver.stderr).read_text()
    async with asyncio.timeout(30):
        while True:
            known = await asyncio.to_thread(ask, f"{spark_cluster.history_url}/api/v1/applications")
            mine = [row for row in known if row["id"] == seen.application_id]
            if mine and mine[0]["attempts"][0]["completed"]:
                break
            await asyncio.sleep(0.3)
    # Nothing of the job's environment goes where Spark shows or keeps it.
    for path in (tmp_path_of_events(spark_cluster) / f"eventlog_v2_{seen.application_id}").rglob("*"):
        assert b"of-the-job" not in path.read_bytes()


def tmp_path_of_events(cluster: SparkCluster) -> Path:
    return Path(cluster.engine_options["spark.eventLog.dir"].removeprefix("file://"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "driver's JVM", "executor", "keeper of a rank"])
async def test_a_killed_process_of_spark_leaves_nothing_behind_and_the_attempt_is_lost(
    engine: SparkEngine, spark_cluster: SparkCluster, tmp_path: Path, victim: str
) -> None:
    directory = tmp_path / "a1"
    await engine.launch(on(spark_cluster, attempt(directory)))
    pids = await pids_of(tmp_path)
    seen = await until(engine, directory, Phase.RUNNING)
    keeper, worker, daemon, executor = psutil.Process(pids[0]).parents()[:4]
    assert "CoarseGrainedExecutorBackend" in " ".join(executor.cmdline())
    jvm = psutil.Process(seen.keeper_pid).parent()
    assert jvm is not None
    victims = {"driver": seen.keeper_pid, "driver's JVM": jvm.pid, "executor": executor.pid}
    os.kill(victims.get(victim, keeper.pid), signal.SIGKILL)
    ended = await until(engine, directory, *ENDED)
    assert ended.phase is Phase.LOST, ended
    assert ended.reason
    await gone(*pids, keeper.pid, seen.keeper_pid)
    # The next attempt of the job needs its place: Spark's own processes go as well.
    await gone(worker.pid, daemon.pid, executor.pid, jvm.pid)


@pytest.mark.slow
async def test_a_master_that_is_killed_ends_nothing_and_a_worker_that_is_killed_is_a_loss(
    engine: SparkEngine, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spark-killed")
    cluster = start_cluster(folder)
    try:
        first, second, third = (tmp_path / name for name in ("one", "two", "three"))
        for each in (first, second, third):
            each.mkdir()
        await engine.launch(on(cluster, attempt(first / "a1")))
        pids = await pids_of(first)
        os.kill(cluster.processes()["master"].pid, signal.SIGKILL)
        await engine.launch(on(cluster, attempt(second / "a1", "print('came late')", ranks=1)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while "does not take it" not in (seen := await engine.observe(second / "a1")).reason:
                assert seen.phase is Phase.STARTING
                await asyncio.sleep(0.05)
        assert (await engine.observe(first / "a1")).phase is Phase.RUNNING
        (first / "go").touch()
        assert (await until(engine, first / "a1", *ENDED)).phase is Phase.FINISHED
        await gone(*pids)
        await asyncio.to_thread(cluster.up, 2, 2, 3072)
        assert (await until(engine, second / "a1", *ENDED)).phase is Phase.FINISHED

        await engine.launch(on(cluster, attempt(third / "a1", ranks=1)))
        pids = await pids_of(third, ranks=1)
        spark_worker = psutil.Process(pids[0]).parents()[4]
        assert "deploy.worker.Worker" in " ".join(spark_worker.cmdline())
        spark_worker.kill()
        assert (await until(engine, third / "a1", *ENDED)).phase is Phase.LOST
        await gone(*pids)
    finally:
        cluster.down()


@dataclass
class PlayedMaster:
    """The submission REST of a master that says what it is told to, and what it heard."""

    create: dict[str, Any] = field(default_factory=lambda: {"success": True, "submissionId": "driver-20260101000000-1"})
    code: int = 200
    status: dict[str, Any] = field(default_factory=lambda: {"success": True, "driverState": "SUBMITTED"})
    silent: threading.Event = field(default_factory=threading.Event)
    heard: list[tuple[str, Any]] = field(default_factory=list)
    port: int = 0

    def options(self) -> dict[str, str]:
        return {"spark.master.rest.port": str(self.port)}

    def calls(self, name: str) -> list[Any]:
        return [body for path, body in self.heard if f"/submissions/{name}" in path]


@pytest.fixture
def master() -> Iterator[PlayedMaster]:
    played = PlayedMaster()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            played.heard.append((self.path, body))
            self._answer(played.create if "create" in self.path else {"success": True}, played.code)

        def do_GET(self) -> None:
            played.heard.append((self.path, None))
            self._answer(played.status, 200)

        def _answer(self, said: dict[str, Any], code: int) -> None:
            if played.silent.is_set():
                time.sleep(1.5)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    played.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield played
    server.shutdown()
    thread.join()
    server.server_close()


def to(master: PlayedMaster, wanted: Attempt) -> Attempt:
    return replace(wanted, master_url="spark://127.0.0.1:7077", options=master.options())


async def heard(master: PlayedMaster, name: str, times: int = 1) -> list[Any]:
    async with asyncio.timeout(20):
        while len(master.calls(name)) < times:
            await asyncio.sleep(0.02)
    return master.calls(name)


def late_driver(directory: Path) -> int:
    """One that comes after all was decided; it needs no Spark to see that."""
    words = [sys.executable, "-S", "-E", submission.DRIVER_PROGRAM, directory]
    return subprocess.run(words, timeout=20, check=False).returncode


async def test_a_stop_before_the_driver_came_is_final_and_takes_the_submission_back(
    engine: SparkEngine, master: PlayedMaster, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    await engine.launch(to(master, attempt(directory)))
    await engine.launch(to(master, attempt(directory)))
    async with asyncio.timeout(20):
        while not (seen := await engine.observe(directory)).driver_id:
            await asyncio.sleep(0.02)
    assert (seen.phase, seen.driver_id) == (Phase.STARTING, "driver-20260101000000-1")
    await engine.stop(directory)
    assert (await engine.observe(directory)).phase is Phase.STOPPED
    await heard(master, "kill/driver-20260101000000-1")
    assert len(master.calls("create")) == 1
    assert await asyncio.to_thread(late_driver, directory) == 0
    assert not (records.folder(directory) / files.DRIVER_FILE).exists()
    assert (await engine.observe(directory)).phase is Phase.STOPPED


async def test_a_launch_that_was_cut_off_is_repeated_and_a_second_driver_does_nothing(
    engine: SparkEngine, master: PlayedMaster, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    wanted = to(master, attempt(directory))
    spark_engine._write_spec(wanted, tmp_path)
    assert (await engine.observe(directory)).phase is Phase.UNKNOWN
    await engine.launch(wanted)
    await heard(master, "create")
    assert (await engine.observe(directory)).phase is Phase.STARTING
    # The driver of the launch that was cut off has come, and ends again: the second finds its file.
    (records.folder(directory) / files.DRIVER_FILE).write_text("{}")
    assert await asyncio.to_thread(late_driver, directory) == 0
    assert not (records.folder(directory) / files.OUTCOME_FILE).exists()


@pytest.mark.parametrize(
    ("state", "phase"), [("SUBMITTED", Phase.STARTING), ("FAILED", Phase.LOST), ("NOT_FOUND", Phase.LOST)]
)
async def test_a_driver_that_spark_ended_before_it_came_is_a_loss(
    engine: SparkEngine,
    master: PlayedMaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    phase: Phase,
) -> None:
    monkeypatch.setattr(spark_engine, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(spark_engine, "FORGOTTEN_SECONDS", 0.05)
    directory = tmp_path / "a1"
    master.status = {"success": state == "SUBMITTED", "driverState": state}
    await engine.launch(to(master, attempt(directory)))
    async with asyncio.timeout(20):
        while len(master.calls("status")) < 5 and (seen := await engine.observe(directory)).phase is Phase.STARTING:
            await asyncio.sleep(0.02)
    assert seen.phase is phase
    if phase is Phase.LOST:
        assert seen.reason == f"Spark says that the driver driver-20260101000000-1 is {state}"
        assert await asyncio.to_thread(late_driver, directory) == 0


async def test_what_spark_refuses_fails_for_good_and_a_standby_master_is_asked_again(
    engine: SparkEngine, master: PlayedMaster, tmp_path: Path
) -> None:
    master.create = {"success": False, "message": "Current state is not alive: RECOVERING"}
    await engine.launch(to(master, attempt(tmp_path / "a1")))
    await heard(master, "create", times=2)
    seen = await engine.observe(tmp_path / "a1")
    assert seen.phase is Phase.STARTING
    assert "not alive: RECOVERING" in seen.reason
    master.create, master.code = {"message": "no such thing as spark.cores.max=x"}, 400
    seen = await until(engine, tmp_path / "a1", Phase.FAILED)
    assert (seen.final, seen.reason) == (True, "Spark refused the attempt: no such thing as spark.cores.max=x")


async def test_a_master_that_does_not_answer_holds_up_nobody(
    engine: SparkEngine, master: PlayedMaster, tmp_path: Path
) -> None:
    master.silent.set()
    slowest = 0.0
    for number in range(20):
        directory = tmp_path / f"a{number}"
        before = time.monotonic()
        await engine.launch(to(master, attempt(directory)))
        assert (await engine.observe(directory)).phase is Phase.STARTING
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 0.75
    master.silent.clear()


def test_the_secrets_of_a_job_and_of_the_platform_are_in_no_setting(tmp_path: Path) -> None:
    wanted = attempt(tmp_path / "a1", master_url="spark://m:7077", options={"spark.executor.memory": "2g"})
    settings = submission.properties(wanted)
    assert "of-the-job" not in json.dumps(settings)
    assert settings["spark.executor.memory"] == "2g"
    assert (settings["spark.cores.max"], settings["spark.task.maxFailures"]) == ("2", "1")
    assert "spark.executor.resource.gpu.amount" not in settings
    assert (tmp_path / "a1").is_dir() is False
    spark_engine._write_spec(wanted, tmp_path)
    assert (records.folder(tmp_path / "a1") / "spec.json").stat().st_mode & 0o777 == 0o600


def test_options_of_a_group_are_sparks_and_add_to_the_flags_of_java(tmp_path: Path) -> None:
    options = {"spark.driver.extraJavaOptions": "-Dx=1", "spark.driver.cores": "1"}
    settings = submission.properties(attempt(tmp_path / "a b", master_url="spark://m:7077", options=options))
    flags = settings["spark.driver.extraJavaOptions"]
    assert flags.startswith("-XX:TieredStopAtLevel=1 ")
    assert flags.endswith(" -Dx=1")
    assert f"'-Ddlmesh.log={tmp_path}/keeper-a b/driver.err'" in flags
    assert settings["spark.driver.cores"] == "1"


@pytest.mark.parametrize(
    ("changes", "amount"),
    [
        ({"gpus_per_rank": 2}, "2"),
        ({"gpus_per_rank": 2, "warning": "no GPU in this group"}, None),
        ({"gpus": [[0], [1]]}, "1"),
        ({}, None),
    ],
)
def test_gpus_are_asked_of_spark(tmp_path: Path, changes: dict[str, Any], amount: str | None) -> None:
    settings = submission.properties(attempt(tmp_path / "a1", master_url="spark://m:7077", **changes))
    for role in ("executor", "task"):
        assert settings.get(f"spark.{role}.resource.gpu.amount") == amount


def test_kubernetes_is_reached_by_spark_submit(tmp_path: Path) -> None:
    options = {"spark.kubernetes.container.image": "registry/dlmesh:1", "spark.kubernetes.namespace": "ml"}
    wanted = attempt(tmp_path / "a1", master_url="k8s://https://api:6443", options=options, job_id="Run_7")
    words = submission.command(wanted, Path("/opt/spark"))
    assert words[:7] == [
        "/opt/spark/bin/spark-submit",
        "--master",
        "k8s://https://api:6443",
        "--deploy-mode",
        "cluster",
        "--name",
        "two ranks",
    ]
    assert words[-2:] == [f"local://{submission.DRIVER_PROGRAM}", str(tmp_path / "a1")]
    confs = [word for flag, word in pairwise(words) if flag == "--conf"]
    assert "spark.kubernetes.container.image=registry/dlmesh:1" in confs
    assert "spark.kubernetes.driver.pod.name=dlmesh-run-7-1" in confs
    assert "spark.kubernetes.submission.waitAppCompletion=false" in confs
    assert "spark.executor.instances=2" in confs
    assert "spark.driver.cores=1" in confs


def test_yarn_is_reached_by_spark_submit(tmp_path: Path) -> None:
    words = submission.command(attempt(tmp_path / "a1", master_url="yarn"), None)
    assert words[:3] == ["spark-submit", "--master", "yarn"]
    assert words[-2:] == [str(submission.DRIVER_PROGRAM), str(tmp_path / "a1")]
    confs = [word for flag, word in pairwise(words) if flag == "--conf"]
    for conf in ("spark.yarn.submit.waitAppCompletion=false", "spark.yarn.maxAppAttempts=1", "spark.driver.cores=1"):
        assert conf in confs
    assert f"spark.yarn.appMasterEnv.PYSPARK_PYTHON={sys.executable}" in confs


async def test_spark_submit_is_told_no_password(
    engine: SparkEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = tmp_path / "spark" / "bin" / "spark-submit"
    submit.parent.mkdir(parents=True)
    submit.write_text(f"#!/bin/sh\nenv > {tmp_path}/told.draft; mv {tmp_path}/told.draft {tmp_path}/told\n")
    submit.chmod(0o755)
    for name in ("PGPASSWORD", "DLMESH_SECRET"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    await engine.launch(attempt(tmp_path / "a1", master_url="yarn"))
    async with asyncio.timeout(10):
        while not (tmp_path / "told").exists():
            await asyncio.sleep(0.02)
    told = (tmp_path / "told").read_text()
    assert ("SPARK_HOME" in told, "hunter2" in told) == (True, False)


@pytest.mark.parametrize("name", ["../../evil", "driver-1/../../kill", ""])
async def test_a_driver_whose_name_leads_elsewhere_is_not_asked_for(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, master_url="spark://127.0.0.1:7077"), tmp_path / "home")
    records.write(records.folder(directory) / files.SUBMISSION_FILE, {"driver_id": name, "standalone": True})
    assert spark_engine._submission_of(directory) is None


async def test_names_of_spark_are_kept_as_they_can_be(engine: SparkEngine, tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, master_url="yarn"), tmp_path / "home")
    driver_file = {"application_id": "\ud800" * 500, "driver_id": 7, "pid": "x", "ranks_started": "many"}
    records.write(records.folder(directory) / files.DRIVER_FILE, driver_file)
    seen = await engine.observe(directory)
    assert (seen.application_id, seen.driver_id) == ("\ufffd" * 128, "")


async def test_a_spark_submit_that_is_not_there_says_so(
    engine: SparkEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "nowhere"))
    await engine.launch(attempt(tmp_path / "a1", master_url="yarn"))
    seen = await until(engine, tmp_path / "a1", Phase.FAILED)
    assert "nowhere/bin/spark-submit cannot be run: No such file or directory" in seen.reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"master_url": ""}, "masterUrl"),
        ({"master_url": "spark://m"}, "masterUrl"),
        ({"master_url": "local[2]"}, "masterUrl"),
        ({"engine_options": {"executor.memory": "1g"}}, "executor.memory"),
        ({"engine_options": {"spark.master.rest.port": "no"}}, "rest.port"),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    engine = SparkEngine(tmp_path)
    group = InstanceGroup("g", "g", 1, engine="spark", master_url="spark://m:7077")
    for url in ("spark://m:7077", "k8s://https://api:6443", "k8s://api", "yarn", "spark://[::1]:7077"):
        engine.check_group(replace(group, master_url=url))
    with pytest.raises(ServiceError, match=says):
        engine.check_group(replace(group, **changes))


def test_the_keeper_of_a_rank_runs_it_once_and_ends_it_when_it_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    wanted = attempt(directory, "import os; open('runs', 'a').write('x'); import time; time.sleep(600)", ranks=1)
    spark_engine._write_spec(replace(wanted, master_url="yarn"), tmp_path / "home")
    words = [sys.executable, "-S", "-E", str(driver.RANK_PROGRAM), str(directory), json.dumps(PLACE), str(os.getpid())]
    first = subprocess.Popen(words, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert subprocess.run(words, start_new_session=True, timeout=20, check=False).returncode == rank.RAN_BEFORE
        (records.folder(directory) / files.END_FILE).write_text('{"grace_seconds": 5}')
        assert first.wait(20) == 0
        # Also when it is over: a stage that Spark tried again would come then.
        assert subprocess.run(words, start_new_session=True, timeout=20, check=False).returncode == rank.RAN_BEFORE
    finally:
        first.kill()
        first.wait()
    record = records.read(records.folder(directory) / files.rank_file(0))
    assert record is not None
    assert (record["ended"], record["exit_code"], record["lost"]) == (True, -signal.SIGTERM, False)
    assert (tmp_path / "runs").read_text() == "x"


PLACE = {"rank": 0, "local_rank": 0, "local_ranks": 1, "node": 0, "address": "h", "container_id": "c", "gpus": []}


def test_a_rank_of_an_attempt_that_was_given_up_never_runs(tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, "open('runs', 'w')", ranks=1, master_url="yarn"), tmp_path / "home")
    assert spark_engine._seal(directory, Phase.LOST, "the driver went without a word", ranks=[])
    words = [sys.executable, "-S", "-E", str(driver.RANK_PROGRAM), str(directory), json.dumps(PLACE), str(os.getpid())]
    assert subprocess.run(words, timeout=20, check=False).returncode == 0
    record = records.read(records.folder(directory) / files.rank_file(0))
    assert record is not None
    assert (record["ended"], record["pid"]) == (True, 0)
    assert not (tmp_path / "runs").exists()


def test_limits_and_hidden_files_are_kept_as_on_this_machine(tmp_path: Path) -> None:
    home, directory = tmp_path / "home", tmp_path / "home" / "jobs" / "j1" / "attempt-1"
    directory.parent.mkdir(parents=True)
    (home / "secret").write_text("the platform's")
    program = (
        "import os, time\n"
        f"try: open({str(home / 'secret')!r}).read(); print('read it', flush=True)\n"
        "except OSError: print('hidden', flush=True)\n"
        "held = bytearray(os.urandom(1 << 20)) * 200\ntime.sleep(600)\n"
    )
    limits = {"memory_bytes_per_rank": 64 << 20, "cores_per_rank": 1.0, "working_directory": str(directory)}
    spark_engine._write_spec(attempt(directory, program, ranks=1, master_url="yarn", **limits), home)
    (records.folder(directory) / files.HEARTBEAT_FILE).touch()
    words = [sys.executable, "-S", "-E", str(driver.RANK_PROGRAM), str(directory), json.dumps(PLACE), str(os.getpid())]
    assert subprocess.run(words, start_new_session=True, timeout=30, check=False).returncode == 0
    record = records.read(records.folder(directory) / files.rank_file(0))
    assert record is not None
    assert record["reason"] == "rank 0 used more than the allowed 64 MiB of memory"
    assert record["exit_code"] != 0
    hides = files.places.hiding.supported_abi() > 0
    assert (directory / "rank-0.out").read_text() == ("hidden\n" if hides else "read it\n")


async def test_a_rank_ends_with_all_it_started_when_its_task_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, ranks=1, master_url="yarn"), tmp_path / "home")
    (records.folder(directory) / files.HEARTBEAT_FILE).touch()
    task = (
        "import os, subprocess, sys; words = sys.argv[1:] + [str(os.getpid())]\n"
        "subprocess.Popen(words, start_new_session=True).wait()"
    )
    words = [sys.executable, "-S", "-E", str(driver.RANK_PROGRAM), str(directory), json.dumps(PLACE)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", task, *words)
    pids = await pids_of(tmp_path, ranks=1)
    process.kill()
    await process.wait()
    await gone(*pids)
    async with asyncio.timeout(20):
        while not (record := records.read(records.folder(directory) / files.rank_file(0)) or {}).get("ended"):
            await asyncio.sleep(0.02)
    assert (record["lost"], record["exit_code"]) == (True, -signal.SIGTERM)
    assert record["reason"] == "Spark ended the task of the rank"


def test_a_driver_is_gone_when_its_heartbeat_stands_still(tmp_path: Path) -> None:
    keeper = rank._Rank(tmp_path, {"environment": {}}, rank.Place(0, 0, 1, 0, "h", "c"))
    now = time.monotonic()
    beat = records.make(tmp_path) / files.HEARTBEAT_FILE
    beat.write_text("1")
    assert not keeper._driver_is_gone(now)
    assert not keeper._driver_is_gone(now + files.FENCE_SECONDS - 1)
    # The clock of the file's host does not count, only that the file changes.
    os.utime(beat, (1, 1))
    assert not keeper._driver_is_gone(now + files.FENCE_SECONDS + 1)
    assert keeper._driver_is_gone(now + 2 * files.FENCE_SECONDS + 2)
    # The ranks are over before the attempt is given up and its next one may start.
    assert files.GONE_SECONDS > files.FENCE_SECONDS + rank.ORPHAN_GRACE_SECONDS + rank.LEFTOVER_GRACE_SECONDS


async def test_an_attempt_is_lost_only_when_keepers_of_other_hosts_have_ended_their_ranks(
    engine: SparkEngine, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, ranks=1, master_url="yarn"), tmp_path / "home")
    here = rank.identity(os.getpid())
    (records.folder(directory) / files.DRIVER_FILE).write_text(json.dumps({**here, "driver_id": "d"}))
    record = {"rank": 0, "pid": 7, "keeper": {**here, "boot_id": "another"}, "ended": False, "lost": False}
    (records.folder(directory) / files.rank_file(0)).write_text(json.dumps(record))
    # The driver's lock is free, and it was one of this host.
    seen = await engine.observe(directory)
    assert (seen.phase, seen.reason) == (Phase.STARTING, spark_engine.ENDING)
    assert (await engine.observe(directory)).phase is Phase.STARTING
    (records.folder(directory) / files.rank_file(0)).write_text(json.dumps({**record, "ended": True}))
    assert (await engine.observe(directory)).phase is Phase.LOST


async def test_a_lost_attempt_is_not_waited_for_longer_than_its_ranks_can_run(
    engine: SparkEngine, tmp_path: Path
) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, ranks=1, master_url="yarn"), tmp_path / "home")
    record = {"rank": 0, "pid": 7, "keeper": {"boot_id": "another"}, "ended": False}
    (records.folder(directory) / files.rank_file(0)).write_text(json.dumps(record))
    assert spark_engine._seal(directory, Phase.LOST, "the driver went without a word", ranks=[])
    assert (await engine.observe(directory)).phase is Phase.STARTING
    (records.folder(directory) / files.HEARTBEAT_FILE).touch()
    assert (await engine.observe(directory)).phase is Phase.STARTING
    # The clock of the file's host does not count, only that the file changes.
    os.utime(records.folder(directory) / files.HEARTBEAT_FILE, (1, 1))
    assert (await engine.observe(directory)).phase is Phase.STARTING
    engine._watched[directory].beat_at -= files.GONE_SECONDS
    assert (await engine.observe(directory)).phase is Phase.LOST


@pytest.mark.parametrize("how", ["a pipe", "no JSON", "nothing of ours", "a link"])
async def test_a_program_that_replaces_the_records_of_its_attempt_holds_up_nobody(
    engine: SparkEngine, tmp_path: Path, how: str
) -> None:
    directory = tmp_path / "a1"
    spark_engine._write_spec(attempt(directory, master_url="yarn"), tmp_path / "home")
    secret = tmp_path / "secret"
    secret.write_text("the platform's")
    (records.folder(directory) / files.DRIVER_FILE).write_text(
        json.dumps({**rank.identity(os.getpid()), "driver_id": "d"})
    )
    for name in (files.OUTCOME_FILE, files.LOCK_FILE, files.rank_file(0), files.STOP_FILE):
        match how:
            case "a pipe":
                os.mkfifo(records.folder(directory) / name)
            case "no JSON":
                (records.folder(directory) / name).write_text("{" * 5000)
            case "nothing of ours":
                (records.folder(directory) / name).write_text('{"state": "odd"}')
            case _:
                (records.folder(directory) / name).symlink_to(secret)
    async with asyncio.timeout(10):
        seen = await engine.observe(directory)
        await engine.stop(directory)
        await engine.describe(directory)
    assert seen.phase in (Phase.LOST, Phase.FAILED)
    assert secret.read_text() == "the platform's"
