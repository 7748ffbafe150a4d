"""The keeper of one rank, started by its barrier task: `python -S -E rank.py DIRECTORY PLACE TASK`.

PLACE is a Place as JSON and TASK the pid of the task's process; with `sweep` instead of PLACE it kills what is left of
the attempt on this host.

It ends the rank, and everything the rank started, when the driver says so, when the driver or its own task is gone,
when the attempt was given up, or when a limit is passed, and then writes how the rank ended. A rank runs once: a task
that is tried again finds the rank's file and does nothing. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__:
    from scheduling_service.engines.spark import files
    from scheduling_service.engines.spark.files import (
        accounts,
        cgroups,
        keeper,
        places,
        processes,
        records,
        sizes,
        usage,
        watches,
    )
else:  # run as a file, without importing the package
    sys.path.insert(0, str(Path(__file__).parent))
    import files  # type: ignore[import-not-found,no-redef]
    from files import accounts, cgroups, keeper, places, processes, records, sizes, usage, watches  # type: ignore[no-redef]

TICK_SECONDS, MEASURE_SECONDS, FENCE_TICK_SECONDS = 0.1, 2.0, 1.0
ORPHAN_GRACE_SECONDS, LEFTOVER_GRACE_SECONDS = 3.0, 1.0
MEETING_SECONDS = 120.0
# How long a look may wait for what was killed to go.
SWEEP_SECONDS = 1.0
RAN_BEFORE = 3
_AWAITED = {signal.SIGCHLD, signal.SIGTERM}


@dataclass
class Place:
    """Where a rank runs in the gang. `gpus` are the devices that Spark gave each rank of this host."""

    rank: int
    local_rank: int
    local_ranks: int
    node: int
    address: str
    container_id: str
    gpus: list[list[Any]] = field(default_factory=list)


def keep_rank(directory: Path, place: Place) -> int:
    """Run it to its end; the exit code of this process, 0 when the rank's file says how it ended."""
    kept = records.folder(directory)
    lock = records.open_lock(kept / f"rank-{place.rank}.lock")
    if not records.take(lock) or (kept / files.rank_file(place.rank)).exists():
        return RAN_BEFORE
    processes.adopt_orphans()
    # Signals are waited for, not handled: no race between looking and sleeping.
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spec = records.read(kept / files.SPEC_FILE)
    if spec is None:
        raise FileNotFoundError(kept / files.SPEC_FILE)
    _Rank(directory, spec, place).run()
    return 0


class _OwnPlace(places.Places):
    """Of one rank, as if its gang were no larger."""

    number = 0

    def enter(self, rank: int) -> None:
        super().enter(0)

    def make_outputs(self) -> None:
        for stream in ("out", "err"):
            descriptor = places.open_output(self.directory / f"rank-{self.number}.{stream}")
            if self.account is not None:
                os.fchown(descriptor, self.account.uid, self.account.gid)
            os.close(descriptor)


@dataclass
class _Rank:
    directory: Path
    spec: dict[str, Any]
    place: Place
    pid: int = 0
    exit_code: int | None = None
    reason: str = ""
    lost: bool = False
    final: bool = False
    beat: int = 0
    beat_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.kept = records.folder(self.directory)
        # Said before it is made: who comes after us removes it.
        self.temporary = places.temporary_of(self.spec)
        self.own = _OwnPlace(self.directory, {**self.spec, "ranks": 1})
        self.own.number = self.place.rank

    def run(self) -> None:
        # Before looking for reasons not to start: whoever writes such a reason looks for this file then.
        self._write()
        try:
            if self._told_to_end() is None:
                self.own.prepare(self._group(), self.temporary)
                self.own.make_outputs()
                environment = {**self._environment(), **self.own.environment()}
                self.pid = keeper.execute_rank(self.spec, self.place.rank, environment, self.own)
                self._write()
                self._watch()
        except accounts.RefusedError as error:
            self.reason, self.final = str(error), True
        except Exception as error:
            self.reason = self.reason or f"rank {self.place.rank} could not be started: {error}"
        self._kill_leftovers()
        if self.own.killed_for_memory(0):
            self._fail_for_memory()
        self.own.close()
        self._write(ended=True)

    def _group(self) -> Path | None:
        """The control group that the rank is to have; None when it needs none, or can have none."""
        if not (self.spec.get("memory_bytes_per_rank") or self.spec.get("cores_per_rank")):
            return None
        base = cgroups.find_base()
        name = f"dlmesh-{self.spec['job_id']}-{self.spec['attempt']}-{self.place.rank}"
        return None if base is None else base / name

    def _watch(self) -> None:
        memory = watches.Memory(0 if self.own.group is not None else self.own.memory_bytes)
        taken = Usage(os.getpid())
        measure_at = fence_at = 0.0
        while self.exit_code is None:
            received = signal.sigtimedwait(_AWAITED, TICK_SECONDS)
            self._reap()
            if received is not None and received.si_signo == signal.SIGTERM:
                self._lose("Spark ended the task of the rank")
                return
            if (grace_seconds := self._told_to_end()) is not None:
                self._end(grace_seconds)
                return
            if self.exit_code is None and memory.look({self.place.rank: self.pid}) is not None:
                # At once: the machine may have nothing left while it saves a checkpoint.
                self._fail_for_memory()
                self._end(0.0)
                return
            now = time.monotonic()
            if now >= fence_at:
                fence_at = now + FENCE_TICK_SECONDS
                if self._driver_is_gone(now):
                    self._lose("the driver gave no sign of life")
                    return
            if now >= measure_at:
                measure_at = now + MEASURE_SECONDS
                path = self.kept / files.usage_file(self.place.rank)
                records.write(path, taken.look(), durable=False)

    def _fail_for_memory(self) -> None:
        allowed = sizes.describe_bytes(self.own.memory_bytes)
        self.reason = f"rank {self.place.rank} used more than the allowed {allowed} of memory"

    def _lose(self, reason: str) -> None:
        self.lost, self.reason = True, reason
        # Before the rank ends: its partners may fail for that, and the driver must know better.
        self._write()
        self._end(ORPHAN_GRACE_SECONDS)

    def _told_to_end(self) -> float | None:
        """The seconds of grace, when the driver or the engine has ended the attempt."""
        if (told := records.read(self.kept / files.END_FILE)) is not None:
            return float(told["grace_seconds"])
        return 0.0 if (self.kept / files.OUTCOME_FILE).exists() else None

    def _driver_is_gone(self, now: float) -> bool:
        """Its heartbeat has stood still, by our clock; the file's own time is compared with itself only."""
        try:
            beat = (self.kept / files.HEARTBEAT_FILE).stat().st_mtime_ns
        except OSError:
            beat = 0
        if beat != self.beat:
            self.beat, self.beat_at = beat, now
        return now - self.beat_at > files.FENCE_SECONDS

    def _environment(self) -> dict[str, str]:
        place, ranks = self.place, self.spec["ranks"]
        environment = dict(self.spec["environment"])
        if ranks > 1:
            environment |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(self._meeting_port())}
        environment |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.local_rank), "NODE_RANK": str(place.node)}
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(place.local_ranks)}
        # A rank that asked for none sees none of the host's.
        return environment | keeper.gpu_environment(place.gpus, place.local_rank)

    def _meeting_port(self) -> int:
        """A port of rank 0's host, which rank 0 finds and the others learn."""
        path = self.kept / files.MEETING_FILE
        if self.place.rank == 0:
            with socket.socket() as probe:
                probe.bind(("", 0))
                records.write(path, {"port": probe.getsockname()[1]})
        deadline = time.monotonic() + MEETING_SECONDS
        while (meeting := records.read(path)) is None:
            if self._told_to_end() is not None:
                return 0
            if time.monotonic() > deadline or signal.sigtimedwait({signal.SIGTERM}, 0.02) is not None:
                self.lost = True
                raise TimeoutError("rank 0 did not come")
        return int(meeting["port"])

    def _write(self, *, ended: bool = False) -> None:
        record = {
            "rank": self.place.rank,
            "pid": self.pid,
            "keeper": identity(os.getpid()),
            "host": socket.gethostname(),
            "container_id": self.place.container_id,
            "temporary": self.temporary and str(self.temporary),
            "ended": ended,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "lost": self.lost,
            "final": self.final,
        }
        records.write(self.kept / files.rank_file(self.place.rank), record)

    def _end(self, grace_seconds: float) -> None:
        """SIGTERM to the rank, then SIGKILL to everything below us."""
        processes.send_signal([self.pid], signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while self.exit_code is None and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, min(left, 1.0))
            self._reap()
        while self.exit_code is None:
            processes.send_signal(processes.descendants(os.getpid()), signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
            self._reap()

    def _kill_leftovers(self) -> None:
        """What the rank started and left behind, also in sessions of its own."""
        deadline = time.monotonic() + LEFTOVER_GRACE_SECONDS
        while leftovers := processes.descendants(os.getpid()):
            late = time.monotonic() > deadline
            processes.send_signal(leftovers, signal.SIGKILL if late else signal.SIGTERM)
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)


class Usage:
    """What the descendants of a process take."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_seconds, self._at = 0.0, time.monotonic()

    def look(self) -> dict[str, float]:
        """Cores that they kept busy since the last look, and MB that they hold; 0 when there are none."""
        found = usage.snapshot()
        pids = found.tree(self._pid) - {self._pid}
        now, cpu_seconds = time.monotonic(), found.cpu_seconds(pids)
        cores = max(0.0, cpu_seconds - self._cpu_seconds) / max(now - self._at, 1e-3)
        self._cpu_seconds, self._at = cpu_seconds, now
        return {"cores_used": round(cores, 2), "memory_mb": usage.memory_bytes(pids, found) / 2**20}


def sweep(directory: Path) -> bool:
    """Kill what an attempt that is lost has left on this host, itself excepted; False when there was nothing."""
    left = processes.left_behind(-1, f"DLMESH_JOB_DIR={directory}")
    processes.end(left, SWEEP_SECONDS)
    if not left:
        _remove_temporaries(directory)
    return bool(left)


def _remove_temporaries(directory: Path) -> None:
    """What keepers of this host that were killed have left."""
    import shutil

    for path in records.folder(directory).glob("rank-*.json"):
        record = records.read(path) or {}
        who, temporary = record.get("keeper"), record.get("temporary")
        is_here = isinstance(who, dict) and who.get("boot_id") == processes.boot_id()
        if is_here and isinstance(temporary, str) and places.is_temporary(Path(temporary)):
            # It follows no links.
            shutil.rmtree(temporary, ignore_errors=True)


def identity(pid: int) -> dict[str, Any]:
    """What tells this process from every other."""
    return {"pid": pid, "start_time": processes.start_time(pid), "boot_id": processes.boot_id()}


if __name__ == "__main__":
    processes.die_with_parent(int(sys.argv[3]), signal.SIGTERM)
    if sys.argv[2] == "sweep":
        if sweep(Path(sys.argv[1])):
            # Temporary files go when nobody can write them any more.
            sweep(Path(sys.argv[1]))
        sys.exit(0)
    sys.exit(keep_rank(Path(sys.argv[1]), Place(**json.loads(sys.argv[2]))))
