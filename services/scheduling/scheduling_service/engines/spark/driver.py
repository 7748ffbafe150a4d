"""The driver of one attempt, run by Spark: `driver.py DIRECTORY`. It starts the ranks by one barrier stage, watches
them, and writes what became of them in the form of the local engine's keeper.

A second driver of an attempt does nothing, nor does one that comes after the attempt was given up. The driver ends with
its JVM; the ranks' keepers end the ranks when the driver has gone. Nothing but pyspark is needed beside Python itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__:
    from scheduling_service.engines.spark import files, rank
    from scheduling_service.engines.spark.files import keeper, places, processes, records, watches
else:  # run as a file, without importing the package
    sys.path.insert(0, str(Path(__file__).parent))
    import files  # type: ignore[import-not-found,no-redef]
    import rank  # type: ignore[import-not-found,no-redef]
    from files import keeper, places, processes, records, watches  # type: ignore[no-redef]

RANK_PROGRAM = Path(__file__).with_name("rank.py")
TICK_SECONDS, BEAT_SECONDS = 0.05, 0.5
FAILURE_GRACE_SECONDS = 3.0
# How much longer than their grace the ranks' keepers may take, and Spark to close its application.
LATE_SECONDS, CLOSE_SECONDS = 10.0, 15.0
STANDALONE_ID = re.compile(r"driver-\d{14}-\d+")


def drive(directory: Path) -> int:
    """Run the attempt to its end; 1 when it did not finish, for Spark's own pages."""
    jvm = os.getppid()
    kept = records.folder(directory)
    if not kept.is_dir():
        return 0
    lock = records.open_lock(kept / files.LOCK_FILE)
    while not records.take(lock):
        # Another driver, which says so soon, or the engine, which only looks.
        if (kept / files.DRIVER_FILE).exists():
            return 0
        time.sleep(0.02)
    if (kept / files.DRIVER_FILE).exists() or (kept / files.OUTCOME_FILE).exists():
        return 0
    spec = records.read(kept / files.SPEC_FILE)
    if spec is None:
        return 0
    _keep_output(kept)
    gang = _Gang(directory, spec, jvm)
    outcome = gang.run()
    # The last words of the attempt, before Spark closes the application: the queue need not wait for that.
    records.write(kept / files.OUTCOME_FILE, outcome)
    gang.close()
    return 0 if outcome["state"] == "finished" else 1


def _keep_output(kept: Path) -> None:
    """Our output lies with the job, for Spark removes what it keeps itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    for target, name in ((1, "driver.out"), (2, "driver.err")):
        descriptor = os.open(kept / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, target)
        os.close(descriptor)


@dataclass
class _Gang:
    directory: Path
    spec: dict[str, Any]
    jvm: int
    reason: str = ""
    failed_rank: int | None = None
    # The rank whose exit code is why.
    cause: int | None = None
    state: str = ""
    final: bool = False
    started_at: float = field(default_factory=time.time)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = records.folder(self.directory)
        self.stage = _Stage(self.directory, self.spec)
        self.usage = rank.Usage(self.jvm)
        self._said: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        self._tell()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        if warning := self.spec.get("warning"):
            self._warn(warning)
        self.stage.start()
        try:
            self._watch()
        except Exception as error:
            self.state, self.reason = "lost", f"the driver failed: {error}"
        self._end(self.spec["grace_seconds"] if self.state == "stopped" else FAILURE_GRACE_SECONDS)
        return {
            "state": self.state or "finished",
            "reason": self.reason,
            "failed_rank": self.failed_rank,
            "final": self.final,
            "started_at": self.started_at,
            "ended_at": time.time(),
            "ranks": [
                {
                    "rank": number,
                    "pid": record.get("pid", 0),
                    "exit_code": record.get("exit_code"),
                    "is_cause": number == self.cause,
                }
                for number in range(self.spec["ranks"])
                for record in [self.records.get(number, {})]
            ],
        }

    def close(self) -> None:
        """Close the application, so that its event log is whole."""
        self.stage.close()

    def _watch(self) -> None:
        """Until all ranks have ended, one failed, a stop was asked for, a limit was passed, or Spark lost something."""
        ranks = range(self.spec["ranks"])
        most_silent_seconds = self.spec.get("max_silent_seconds") or 0
        disk = watches.Disk(
            (self.directory.parent, self.spec["working_directory"]), self.spec.get("max_disk_bytes") or 0
        )
        signs = None
        while True:
            self._tell()
            if (self.kept / files.STOP_FILE).exists():
                self.state = "stopped"
                return
            # Looked at before the ranks' files: a stage that is over has written them all.
            stage_is_over = self.stage.is_over
            self._read_ranks()
            if self._has_ended(stage_is_over):
                return
            if len(self.records) == len(ranks):
                if signs is None:
                    signs, self.started_at = watches.Signs(self.directory, len(ranks)), time.time()
                running = [number for number in ranks if not self.records[number]["ended"]]
                if self._passed_a_limit(signs, running, most_silent_seconds):
                    return
            if passed := disk.look():
                self.state, self.reason, self.final = "failed", passed, True
                return
            if warning := disk.warning():
                self._warn(warning)
            self.stage.over.wait(TICK_SECONDS)
            if stage_is_over:
                time.sleep(TICK_SECONDS)

    def _has_ended(self, stage_is_over: bool) -> bool:
        ended = {number: record for number, record in self.records.items() if record["ended"]}
        failed = [number for number, record in ended.items() if record["exit_code"] != 0 and not record["lost"]]
        # A rank that is ended because its executor went takes its partners down, and they fail for no other reason.
        lost = next((record["reason"] for record in self.records.values() if record["lost"]), "")
        if lost:
            self.state, self.reason = "lost", self.stage.error or lost
            return True
        if failed:
            # Of several that ended together one ended by a signal is the cause: the others lost their partner.
            number = min(failed, key=lambda number: ((ended[number]["exit_code"] or 0) > 0, number))
            self.state, self.failed_rank, self.final = "failed", number, ended[number]["final"]
            code = ended[number]["exit_code"]
            # Its keeper may have had a reason of its own to end it: a limit that it passed.
            self.cause = None if ended[number]["reason"] else number
            self.reason = ended[number]["reason"] or f"rank {number} {keeper.describe_exit(code or 0)}"
            return True
        if len(ended) == self.spec["ranks"]:
            return True
        if stage_is_over:
            self.state, self.reason = "lost", self.stage.error or "Spark ended the stage before the ranks"
        return stage_is_over

    def _passed_a_limit(self, signs: watches.Signs, running: list[int], most_silent_seconds: float) -> bool:
        limit = self.spec.get("max_seconds") or 0
        if limit and time.time() - self.started_at > limit:
            self.reason = f"ran longer than the allowed {limit:g} seconds"
        elif most_silent_seconds:
            number, seconds = signs.most_silent(running)
            if seconds > most_silent_seconds:
                self.failed_rank = number
                self.reason = f"rank {number} gave no sign of life for {most_silent_seconds:g} s"
        self.state = "failed" if self.reason else ""
        return bool(self.reason)

    def _end(self, grace_seconds: float) -> None:
        """Have the ranks ended, and wait until they have: those whose keepers have not come yet will not start."""
        records.write(self.kept / files.END_FILE, {"grace_seconds": grace_seconds})
        deadline = time.monotonic() + grace_seconds + LATE_SECONDS
        self._read_ranks()
        while any(map(_may_end, self.records.values())) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
            self._read_ranks()

    def _read_ranks(self) -> None:
        for number in range(self.spec["ranks"]):
            if not self.records.get(number, {}).get("ended"):
                record = records.read(self.kept / files.rank_file(number))
                if record is not None:
                    self.records[number] = record

    def _tell(self) -> None:
        """Say what we are and how far Spark has come, when that is news."""
        said = {"application_id": self.stage.application_id, "ui": self.stage.ui, "ranks_started": len(self.records)}
        if said != self._said:
            self._said = said
            who = {**rank.identity(os.getpid()), "jvm": rank.identity(self.jvm), "host": socket.gethostname()}
            records.write(self.kept / files.DRIVER_FILE, {**who, "driver_id": driver_id(), **said})

    def _beat(self) -> None:
        """Say that we live, in a thread of its own, for a look at large folders may take long; end with the JVM, which
        has the application."""
        measure_at = 0.0
        while os.getppid() == self.jvm:
            # A full disk has no room for anything but a time.
            with contextlib.suppress(OSError):
                (self.kept / files.HEARTBEAT_FILE).touch()
                now = time.monotonic()
                if now >= measure_at:
                    measure_at = now + rank.MEASURE_SECONDS
                    records.write(self.kept / files.DRIVER_USAGE, self.usage.look(), durable=False)
            time.sleep(BEAT_SECONDS)
        os._exit(1)

    def _warn(self, text: str) -> None:
        """A line among the errors of rank 0, which is the log that people look into."""
        # The program may have put something else in its place.
        path = self.directory / "rank-0.err"
        with contextlib.suppress(OSError), os.fdopen(places.open_output(path), "a") as file:
            file.write(f"warning: {text}\n")


def _may_end(record: dict[str, Any]) -> bool:
    """Whether the keeper that wrote it has more to say; one of this host may have been killed."""
    who = record["keeper"]
    is_here = who["boot_id"] == processes.boot_id()
    return not record["ended"] and not (is_here and processes.start_time(who["pid"]) != who["start_time"])


class _Stage:
    """The barrier stage in a thread of its own; `over` is set when it has ended, `error` says why it failed."""

    def __init__(self, directory: Path, spec: Mapping[str, Any]) -> None:
        self._directory, self._ranks = directory, int(spec["ranks"])
        self._context: Any = None
        self._thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self.over = threading.Event()
        self.error = ""
        self.application_id = ""
        self.ui = ""

    @property
    def is_over(self) -> bool:
        return self.over.is_set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """The tasks return when their ranks have ended; Spark may take its time, but not for ever."""
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _close(self) -> None:
        if self._context is not None:
            self.over.wait(CLOSE_SECONDS / 3)
            self._context.stop()

    def _run(self) -> None:
        try:
            # What it says of versions of pandas, which it does not use here, is not for those who look into our log.
            warnings.simplefilter("ignore", FutureWarning)
            from pyspark import SparkContext

            self._context = SparkContext()
            self.ui = self._context.uiWebUrl or ""
            self.application_id = self._context.applicationId
            words = [sys.executable, "-S", "-E", str(RANK_PROGRAM), str(self._directory)]
            numbers = self._context.parallelize(range(self._ranks), self._ranks)
            numbers.barrier().mapPartitions(_task(words, self._ranks)).collect()
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.error = f"Spark ended the ranks' stage: {_cause(lines)}"
            print(error, file=sys.stderr, flush=True)
        self.over.set()


def _cause(lines: list[str]) -> str:
    """The part of a stage's failure that says something to people: what became of an executor, or what a task said."""
    for mark in ("ExecutorLostFailure", "RuntimeError: ", "SparkException: "):
        for line in lines:
            if mark in line:
                at = line.index(mark)
                return line[at if mark == "ExecutorLostFailure" else at + len(mark) :][:300]
    return (lines or ["it does not say why"])[0][:300]


def _task(words: list[str], ranks: int) -> Any:
    """What each task does, as a function that Spark can send: where its rank stands, then its keeper until it ends."""

    def run(numbers: Iterator[int]) -> list[int]:
        import json
        import os
        import subprocess
        from pathlib import Path

        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        hosts = [task.address.rpartition(":")[0] for task in context.getTaskInfos()]
        partition = context.partitionId()
        # Ranks of one host have neighbouring numbers, as under torchrun; rank 0 is where the first task is.
        nodes = list(dict.fromkeys(hosts))
        order = sorted(range(ranks), key=lambda index: (nodes.index(hosts[index]), index))
        mine = [index for index in order if hosts[index] == hosts[partition]]
        resources = context.resources()
        gpus: list[list[str]] = []
        if "gpu" in resources:
            told = context.allGather(json.dumps(list(resources["gpu"].addresses)))
            gpus = [json.loads(told[index]) for index in mine]
        folder = Path.cwd()
        standalone = f"{folder.parent.name}/{folder.name}" if folder.parent.name.startswith("app-") else ""
        place = {
            "rank": order.index(partition),
            "local_rank": mine.index(partition),
            "local_ranks": len(mine),
            "node": nodes.index(hosts[partition]),
            "address": hosts[order[0]].strip("[]"),
            "container_id": standalone or os.environ.get("CONTAINER_ID") or os.environ.get("HOSTNAME", ""),
            "gpus": gpus,
        }
        # In a session of its own: when Spark ends its workers it signals their whole group.
        keeper_process = subprocess.Popen(
            [words[0], *words[1:], json.dumps(place), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={"DLMESH_JOB_DIR": words[-1]},
        )
        code = keeper_process.wait()
        if code < 0:
            # It was killed, and the rank with it; nobody else knows what the rank left behind on this host.
            subprocess.run([*words, "sweep", str(os.getpid())], check=False)
        if code != 0:
            raise RuntimeError(f"the keeper of rank {place['rank']} ended with code {code}")
        return list(numbers)

    return run


def driver_id() -> str:
    """What Spark calls us: our folder's name (standalone), our container's (YARN) or our pod's (Kubernetes)."""
    folder = Path.cwd().name
    if STANDALONE_ID.fullmatch(folder):
        return folder
    return os.environ.get("CONTAINER_ID") or os.environ.get("HOSTNAME") or socket.gethostname()


if __name__ == "__main__":
    code = drive(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that wait for Spark must not keep a driver that has said its last words.
    os._exit(code)
