"""Everything that runs jobs is killed at random moments while jobs of every kind come: each ends exactly once.

What "once" can mean: a kill may come after a program's last step and before anybody wrote that down, so a program may
run again. But two attempts of a job never run at the same time, nobody runs again whom no kill touched, and a job has
one end, which never changes. The programs themselves bear witness: each rank holds locks while it runs, of its own and
of a slot, and appends a line to its job's evidence when it begins and when it ends.

DLMESH_CHAOS_SECONDS is how long is killed, DLMESH_CHAOS_SEED repeats the dice of an earlier run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2
from dlmesh_platform.spark_cluster import SparkCluster
from scheduling_service.domain.job import Job, State
from scheduling_service.engines.local import processes
from scheduling_service.engines.local.engine import warm_socket
from scheduling_service.storage.jobs import SqlJobs
from servicekit.database import Database
from testkit.scheduling_process import SchedulingProcess
from testkit.spark import CORES_PER_WORKER, WORKER_MEMORY_MB, WORKERS, start_cluster

pytestmark = pytest.mark.slow

SLOTS = 4
# A job is killed so often at most, and may be restarted so often for it: pauses between attempts grow.
MOST_KILLS_OF_A_JOB = 3
KINDS = ("endless", "short", "failing", "gang", "retried", "elastic", "follower")
# The program of every job: FOLDER OF THE JOB, KIND, SECONDS.
PROGRAM = """
import fcntl, os, signal, sys, time
folder, kind, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
attempt, rank, world = (int(os.environ[name]) for name in ("DLMESH_JOB_ATTEMPT", "RANK", "WORLD_SIZE"))
evidence = os.open(folder + "/evidence", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

def say(word):
    os.write(evidence, f"{word} {attempt} {rank} {world} {time.time():.6f}\\n".encode())

def said(word):
    with open(folder + "/evidence") as lines:
        return sum(line.startswith(word + " ") for line in lines)

def take(path, how=fcntl.LOCK_EX):
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock

# Held until the process ends, however it ends.
if take(f"{folder}/lock-{attempt}-{rank}") is None:
    say("OVERLAP")
for name in os.listdir(folder):
    if name.startswith("lock-") and not name.startswith(f"lock-{attempt}-"):
        other = take(f"{folder}/{name}", fcntl.LOCK_SH)
        if other is None:
            say("OVERLAP")
        else:
            os.close(other)
slots = os.path.dirname(folder) + "/slots"
if not any(take(f"{slots}/{number}") for number in range(len(os.listdir(slots)))):
    say("OVERSUBSCRIBED")
before = said("failed")
say("begin")
if kind == "elastic":
    def save(*_):
        say("saved")
        os._exit(143)
    signal.signal(signal.SIGTERM, save)
    steps = lambda: int(open("steps").read()) if os.path.exists("steps") else 0
    while steps() < seconds * 10:
        time.sleep(0.1)
        if rank == 0:
            with open("steps.draft", "w") as draft:
                draft.write(str(steps() + 1))
            os.rename("steps.draft", "steps")
elif kind == "endless":
    time.sleep(3600)
else:
    time.sleep(seconds)
if kind == "failing" or kind == "retried" and not before:
    say("failed")
    sys.exit(3)
say("done")
"""


@dataclass(frozen=True)
class Line:
    """What a rank said."""

    word: str
    attempt: int
    rank: int
    world: int
    at: float


@dataclass
class Planned:
    """A job of the stream; `after` is the one that it waits for, `is_stopped` says that its stop was asked for."""

    id: str
    kind: str
    owner: str
    ranks: int
    seconds: float
    after: str = ""
    is_stopped: bool = False
    submitted_at: float = 0.0


@dataclass
class Stream:
    """Jobs that are submitted, stopped and looked at while everything is killed; calls wait for the service."""

    service: SchedulingProcess
    data: Path
    group: str
    dice: random.Random
    most_unfinished: int
    seconds: tuple[float, float]
    planned: dict[str, Planned] = field(default_factory=dict)
    # By job: its state when it was seen to have ended, with all that must not change any more.
    ends: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[str]:
        return [job_id for job_id in [*self.planned] if job_id not in self.ends]

    def run(self, over: threading.Event) -> None:
        while not over.wait(0.05):
            if len(self.unfinished) < self.most_unfinished:
                self._submit()
            self.look()
            self._stop_some()

    def look(self) -> None:
        """At all that have not ended, and at some that have: their ends must be what they were."""
        known = [*self.ends]
        asked = self.unfinished + self.dice.sample(known, min(20, len(known)))
        self.compare(asked)

    def compare(self, job_ids: Iterable[str]) -> None:
        asked = [*job_ids]
        found = {job.id: job for job in self.service.jobs(asked)}
        assert found.keys() == set(asked), "a submitted job is gone"
        for job in found.values():
            if job.state in ("FINISHED", "ERROR", "KILLED"):
                end = (job.state, job.reason, job.attempt, job.started_at, job.ended_at)
                assert self.ends.setdefault(job.id, end) == end, f"{job.id} ended twice"
            else:
                assert job.id not in self.ends, f"{job.id} came back as {job.state} from {self.ends[job.id]}"

    def _submit(self) -> None:
        dice = self.dice
        # One of each first: where all is slow there are not many.
        first = KINDS[len(self.planned) : len(self.planned) + 1]
        kind = first[0] if first else dice.choice([*KINDS, "short"])
        owner = dice.choice(["alice", "bob"])
        ranks = {"gang": 2, "elastic": 3, "endless": dice.choice([1, 2])}.get(kind, 1)
        job = Planned(f"{kind}{len(self.planned)}", kind, owner, ranks, dice.uniform(*self.seconds))
        if kind == "elastic":
            job.seconds *= 3
        if kind == "follower":
            theirs = [other for other in [*self.planned.values()][-8:] if other.owner == owner]
            # For one that is stopped it waits no longer than for any other.
            job.after = dice.choice(theirs).id if theirs else ""
        folder = self.data / job.id
        folder.mkdir()
        spec = jobs_pb2.JobSpec(
            name=job.id,
            kind="exec",
            owner=owner,
            instance_group=self.group,
            ranks=ranks,
            min_ranks=1 if kind == "elastic" else 0,
            command=["python", str(self.data / "program.py"), str(folder), kind, str(job.seconds)],
            working_directory=str(folder),
            max_restarts={"failing": 1}.get(kind, MOST_KILLS_OF_A_JOB + 1),
            grace_seconds=2,
            warm=dice.random() < 0.7,
            priority=50 if dice.random() < 0.2 else 0,
            after=[job.after] if job.after else [],
        )
        self.planned[job.id] = job
        for _ in range(dice.choice([1, 1, 2])):
            assert self.service.submit(job.id, spec).id == job.id
        job.submitted_at = time.monotonic()

    def _stop_some(self) -> None:
        for job_id in self.unfinished:
            job = self.planned[job_id]
            age = time.monotonic() - job.submitted_at
            often = 0.05 if job.kind == "endless" and age > self.seconds[1] else 0.0005 / self.seconds[1]
            if not job.is_stopped and self.dice.random() < often:
                self.stop(job)

    def stop(self, job: Planned) -> None:
        job.is_stopped = True
        self.service.stop_job(job.id)


class Scene(ABC):
    """What there is to kill, beside the service itself."""

    group = ""
    most_unfinished: int
    # Of jobs, of pauses between kills, of the time within which all end when the kills have.
    job_seconds: tuple[float, float]
    pauses: Sequence[float]
    end_seconds: float
    # What is killed less often than the rest, so that something comes to run.
    rare: Sequence[str] = ()

    def __init__(self, home: Path, service: SchedulingProcess, dice: random.Random) -> None:
        self.home, self.service, self.dice = home, service, dice
        self.unfinished: list[str] = []
        self.kills: Counter[str] = Counter()
        self.kills_of: dict[str, list[str]] = defaultdict(list)

    @abstractmethod
    def kinds(self) -> Mapping[str, Callable[[], bool]]:
        """Names of what can be killed, and what does it; False when there is none now."""

    def prepare(self) -> None:  # noqa: B027  not every scene needs it
        """Once the service answers."""

    def rage(self, until: float, stream: Stream, is_wanted: Callable[[], bool]) -> None:
        """Kill, until then and until one of each kind was killed."""
        kinds = self.kinds()
        due = self.dice.sample(sorted(kinds), len(kinds))
        last = until + 180
        while is_wanted() and (time.monotonic() < until or due):
            assert time.monotonic() < last, f"no {due} to kill"
            often = [*kinds, *(name for name in [*kinds, *kinds] if name not in self.rare)]
            name = self.dice.choice(due or often)
            time.sleep(self.dice.choice(self.pauses))
            self.unfinished = stream.unfinished
            if kinds[name]():
                self.kills[name] += 1
                # Shown when the test fails, beside the times of the evidence.
                print(f"{time.time():.3f} killed: {name}")
                if name in due:
                    due.remove(name)

    def kill_service(self) -> bool:
        how = self.dice.choice([signal.SIGKILL, signal.SIGTERM])
        # 0 of one that was told to end, unless it had not even begun.
        assert self.service.end(how) in (-how, 0)
        time.sleep(self.dice.choice([0.0, 0.0, 0.3, 1.0, 3.0]))
        self.service.start()
        return True

    def attempts(self) -> Iterator[tuple[str, Path]]:
        """Of jobs that have not ended: those that run or are about to, in any order."""
        for job_id in self.dice.sample(self.unfinished, len(self.unfinished)):
            for directory in (self.home / "jobs" / job_id).glob("attempt-*"):
                if not (kept(directory) / "outcome.json").exists():
                    yield job_id, directory

    def kill_one(self, what: str, find: Callable[[Path], list[psutil.Process]], how: Sequence[signal.Signals]) -> bool:
        for job_id, directory in self.attempts():
            if len([name for name in self.kills_of[job_id] if name not in self.rare]) >= MOST_KILLS_OF_A_JOB:
                continue
            with suppress(psutil.Error):
                if found := find(directory):
                    # First: what may be seen of it must be known to be of our doing.
                    self.kills_of[job_id].append(what)
                    self.dice.choice(found).send_signal(self.dice.choice(how))
                    return True
        return False


def read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


def alive(identity: Mapping[str, Any]) -> list[psutil.Process]:
    """The process that was noted, if it is still that one."""
    pid = identity.get("pid", 0)
    if pid and processes.start_time(pid) == identity.get("start_time"):
        return [psutil.Process(pid)]
    return []


class LocalScene(Scene):
    most_unfinished = 12
    job_seconds = (0.05, 1.0)
    # The warm pool needs some seconds of peace now and then to get warm.
    pauses = (0.0, 0.05, 0.1, 0.3, 0.6, 4.0)
    end_seconds = 180.0

    def kinds(self) -> Mapping[str, Callable[[], bool]]:
        return {
            "service": self.kill_service,
            "keeper": lambda: self.kill_one("keeper", keeper_of, [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]),
            "rank": lambda: self.kill_one("rank", local_ranks_of, [signal.SIGKILL]),
            "warm pool": self.kill_pool,
        }

    def kill_pool(self) -> bool:
        with suppress(psutil.Error):
            for process in psutil.Process(self.service.pid).children() if self.service.pid else ():
                if "scheduling_service.engines.local.zygote" in process.cmdline():
                    process.kill()
                    return True
        return False


def kept(directory: Path) -> Path:
    """Where the keepers of an attempt say what they do."""
    return directory.with_name(f"keeper-{directory.name}")


def keeper_of(directory: Path) -> list[psutil.Process]:
    return alive(read(kept(directory) / "keeper.json"))


def local_ranks_of(directory: Path) -> list[psutil.Process]:
    return [process for row in read(kept(directory) / "ranks.json").get("ranks", ()) for process in alive(row)]


class SparkScene(Scene):
    group = "cluster"
    most_unfinished = 6
    job_seconds = (0.5, 5.0)
    pauses = (0.1, 1.0, 4.0, 8.0)
    end_seconds = 420.0
    rare = ("worker", "master", "service")

    def __init__(self, home: Path, service: SchedulingProcess, dice: random.Random, cluster: SparkCluster) -> None:
        super().__init__(home, service, dice)
        self.cluster = cluster

    def prepare(self) -> None:
        settings = scheduling_pb2.InstanceGroupSettings(
            name=self.group,
            engine="spark",
            master_url=self.cluster.master_url,
            hosts=WORKERS,
            slots_per_host=SLOTS // WORKERS,
            engine_options=self.cluster.engine_options,
        )
        self.service.create_group(settings)

    def kinds(self) -> Mapping[str, Callable[[], bool]]:
        one = self.kill_one
        kill = [signal.SIGKILL]
        return {
            "service": self.kill_service,
            "driver": lambda: one("driver", lambda path: alive(read(kept(path) / "driver.json")), kill),
            "JVM of a driver": lambda: one(
                "JVM", lambda path: alive(read(kept(path) / "driver.json").get("jvm", {})), kill
            ),
            "executor": lambda: one("executor", executors_of, kill),
            "keeper": lambda: one("keeper", spark_keepers_of, [signal.SIGKILL, signal.SIGTERM]),
            "rank": lambda: one("rank", spark_ranks_of, kill),
            "worker": lambda: self.kill_daemon(self.dice.choice([f"worker-{number}" for number in range(WORKERS)])),
            "master": lambda: self.kill_daemon("master"),
        }

    def kill_daemon(self, name: str) -> bool:
        """As an operator sees it: it is gone, and he starts it again."""
        # Whatever was on its way to it, or ran there. A master that is back may not find drivers again that start.
        for job_id in self.unfinished:
            self.kills_of[job_id].append(name.partition("-")[0])
        url = self.cluster.master_url
        os.kill(self.cluster.processes()[name].pid, signal.SIGKILL)
        time.sleep(self.dice.choice([0.2, 1.0, 3.0]))
        self.cluster.up(WORKERS, CORES_PER_WORKER, WORKER_MEMORY_MB)
        assert self.cluster.master_url == url
        return True


def spark_records(directory: Path) -> list[dict[str, Any]]:
    return [record for path in kept(directory).glob("rank-?.json") if not (record := read(path)).get("ended", True)]


def spark_keepers_of(directory: Path) -> list[psutil.Process]:
    return [process for record in spark_records(directory) for process in alive(record["keeper"])]


def spark_ranks_of(directory: Path) -> list[psutil.Process]:
    pids = {record["pid"] for record in spark_records(directory)}
    return [child for keeper in spark_keepers_of(directory) for child in keeper.children() if child.pid in pids]


def executors_of(directory: Path) -> list[psutil.Process]:
    found = [parent for keeper in spark_keepers_of(directory) for parent in keeper.parents()]
    return [parent for parent in found if "CoarseGrainedExecutorBackend" in " ".join(parent.cmdline())]


@dataclass(frozen=True)
class Place:
    """Where the chaos happens."""

    home: Path
    service: SchedulingProcess
    database_url: str
    scene: Scene
    seed: str
    seconds: float

    def dice(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    @property
    def data(self) -> Path:
        return self.home / "data"


@pytest.fixture(
    params=[("local", "sqlite", 45.0), ("local", "postgresql", 20.0), ("spark", "sqlite", 60.0)],
    ids=lambda param: "-".join(param[:2]),
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    engine, database, seconds = request.param
    home = tmp_path / "home"
    (home / "data" / "slots").mkdir(parents=True)
    for number in range(SLOTS):
        (home / "data" / "slots" / str(number)).touch()
    (home / "data" / "program.py").write_text(PROGRAM)
    url = f"sqlite:///{home / 'db' / 'scheduling.sqlite'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres_server").create_database()
    seed = os.environ.get("DLMESH_CHAOS_SEED") or secrets.token_hex(4)
    # Shown when the test fails.
    print(f"DLMESH_CHAOS_SEED={seed}")
    cluster = start_cluster(tmp_path / "spark") if engine == "spark" else None
    environment = {"DLMESH_SLOTS": str(SLOTS), "DLMESH_GROW_AFTER_SECONDS": "1", "DLMESH_DATABASE_URL": url}
    service = SchedulingProcess(home, environment)
    dice = random.Random(f"{seed} kills")
    scene = LocalScene(home, service, dice) if cluster is None else SparkScene(home, service, dice, cluster)
    try:
        service.start()
        scene.prepare()
        yield Place(home, service, url, scene, seed, float(os.environ.get("DLMESH_CHAOS_SECONDS") or seconds))
    finally:
        service.close()
        if cluster is not None:
            cluster.down()
        for process in left_of(home):
            with suppress(psutil.Error):
                process.kill()


def left_of(home: Path) -> list[psutil.Process]:
    """Whatever runs for the platform below `home`; forks of the warm pool show its command line."""
    marks = (str(home), str(warm_socket(home)))
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = [*process.cmdline(), *(f"{key}={value}" for key, value in process.environ().items())]
            if process.pid != os.getpid() and any(mark in word for mark in marks for word in told):
                found.append(process)
    return found


def test_every_job_ends_exactly_once_whatever_is_killed(place: Place) -> None:
    scene, service = place.scene, place.service
    stream = Stream(service, place.data, scene.group, place.dice("jobs"), scene.most_unfinished, scene.job_seconds)
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        streaming = thread.submit(stream.run, over)
        try:
            scene.rage(time.monotonic() + place.seconds, stream, lambda: not streaming.done())
        finally:
            over.set()
        streaming.result()
    for planned in stream.planned.values():
        if planned.kind == "endless" and not planned.is_stopped:
            stream.stop(planned)
    deadline = time.monotonic() + scene.end_seconds
    while stream.unfinished:
        late = [(job.id, job.state, job.attempt, job.reason) for job in service.jobs(stream.unfinished)]
        assert time.monotonic() < deadline, late
        time.sleep(0.2)
        stream.look()
    stream.compare(stream.planned)
    until_nothing_runs(place.home, service)
    assert service.end(signal.SIGTERM) == 0
    until_nothing_runs(place.home, service)

    jobs = asyncio.run(rows_of(place.database_url, [*stream.planned]))
    states = Counter(job.state.value for job in jobs.values())
    print(f"{len(jobs)} jobs: {dict(states)}; killed: {dict(scene.kills)}")
    assert states["FINISHED"]
    assert states["KILLED"]
    evidence = {job_id: lines_of(place.data / job_id / "evidence") for job_id in jobs}
    for job_id, job in jobs.items():
        try:
            planned = stream.planned[job_id]
            check_evidence(job, evidence[job_id])
            check_end(job, planned, evidence[job_id], jobs)
            check_attempts(job, evidence[job_id], scene.kills_of[job_id])
            if planned.after and evidence[job_id]:
                assert evidence[job_id][0].at > evidence[planned.after][-1].at, "it began before the other had ended"
        except AssertionError as error:
            told = "\n".join(map(str, [*evidence[job_id], job, scene.kills_of[job_id]]))
            raise AssertionError(f"{job_id}: {error}\n{told}") from error


def until_nothing_runs(home: Path, service: SchedulingProcess) -> None:
    """Nothing of a job, that is: the service and its warm pool may."""
    deadline = time.monotonic() + 60
    while True:
        left = []
        for process in left_of(home):
            with suppress(psutil.Error):
                if service.pid not in (process.pid, process.ppid()):
                    left.append(f"{process.pid} {' '.join(process.cmdline())}")
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


async def rows_of(database_url: str, job_ids: Sequence[str]) -> dict[str, Job]:
    database = Database(database_url, "scheduling")
    try:
        return {job.id: job for job in await SqlJobs(database).find(job_ids)}
    finally:
        await database.close()


def lines_of(path: Path) -> list[Line]:
    if not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines()]
    return [Line(word, int(attempt), int(rank), int(world), float(at)) for word, attempt, rank, world, at in rows]


def check_evidence(job: Job, lines: Sequence[Line]) -> None:
    """What the ranks saw of each other."""
    words = Counter(line.word for line in lines)
    assert not words["OVERLAP"], "two attempts ran at once"
    assert not words["OVERSUBSCRIBED"], "more ranks ran than there are slots"
    begun = Counter((line.attempt, line.rank) for line in lines if line.word == "begin")
    assert set(begun.values()) <= {1}, "a rank ran twice"
    attempts = [line.attempt for line in lines]
    assert attempts == sorted(attempts), "attempts interleave"
    assert not lines or attempts[-1] <= job.attempt
    for line in lines:
        assert line.rank < line.world, "a rank beyond the gang"
        assert job.spec.fewest_ranks <= line.world <= job.spec.ranks
    if job.ended_at and lines:
        assert lines[-1].at <= job.ended_at.timestamp(), "something ran after the end"


def check_end(job: Job, planned: Planned, lines: Sequence[Line], jobs: Mapping[str, Job]) -> None:
    """The one state that it could end with, and the work that this state claims."""
    other = jobs[planned.after] if planned.after else None
    if job.state is State.KILLED:
        assert planned.is_stopped, "nobody asked for its end"
        return
    assert planned.kind != "endless", "it never ends by itself"
    if other is not None and other.state is not State.FINISHED:
        assert job.state is State.ERROR
        assert "which it waits for" in job.reason
        assert not lines, "it ran though what it waits for failed"
        return
    if planned.kind == "failing":
        assert job.state is State.ERROR
        assert job.program_failures == job.spec.max_restarts + 1
        return
    assert job.state is State.FINISHED, job.reason
    done = {line.rank for line in lines if line.word == "done" and line.attempt == job.attempt}
    worlds = {line.world for line in lines if line.attempt == job.attempt}
    assert worlds == {job.current_ranks}
    assert done == set(range(job.current_ranks)), "it finished without its ranks"
    if planned.kind == "retried":
        assert any(line.word == "failed" for line in lines)


def check_attempts(job: Job, lines: Sequence[Line], kills: Sequence[str]) -> None:
    """Every attempt beyond the first has a cause, and kills of the service are none."""
    failed = len({line.attempt for line in lines if line.word == "failed"})
    assert job.program_failures <= failed + kills.count("rank"), "a failure that was none of the program's"
    assert job.platform_losses <= len(kills), "a loss without a kill"
    if not job.spec.is_elastic:
        last_failed = job.state is State.ERROR
        more = job.program_failures + job.platform_losses + (0 if last_failed else 1)
        if job.state is State.KILLED:
            assert job.attempt <= more
        elif job.attempt:
            assert job.attempt == more
    elif not kills:
        # It was resized: whoever was told to end had said that it saved its work, or had done all of it.
        assert (job.program_failures, job.platform_losses) == (0, 0)
