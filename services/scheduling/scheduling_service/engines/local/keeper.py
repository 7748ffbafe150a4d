"""The process that keeps one attempt of a job: starts its ranks together, ends them together, writes what became of it.

It lives in a session of its own and outlives the scheduling service, which finds it again by pid and start time. The
ranks die with it (PR_SET_PDEATHSIG). Standard library only, so that it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__:
    from workerkit.confinement import accounts, sizes

    from scheduling_service.engines.local import cgroups, places, processes, records, watches
else:  # run as a file, without importing the package
    sys.path.insert(0, str(Path(__file__).parent))
    import paths  # type: ignore[import-not-found]

    sys.path[:0] = paths.SHARED_FOLDERS
    import accounts  # type: ignore[import-not-found,no-redef]
    import cgroups  # type: ignore[import-not-found,no-redef]
    import places  # type: ignore[import-not-found,no-redef]
    import processes  # type: ignore[import-not-found,no-redef]
    import records  # type: ignore[import-not-found,no-redef]
    import sizes  # type: ignore[import-not-found,no-redef]
    import watches  # type: ignore[import-not-found,no-redef]

# Of the attempt's records.
SPEC_FILE, KEEPER_FILE, OUTCOME_FILE, LOCK_FILE = "spec.json", "keeper.json", "outcome.json", "keeper.lock"
# The pids of the ranks while they run; what the keeper itself says.
RANKS_FILE, LOG_FILE = "ranks.json", "keeper.log"
FAILURE_GRACE_SECONDS = 3.0
LEFTOVER_GRACE_SECONDS = 1.0
TICK_SECONDS = 1.0

StartRank = Callable[[dict[str, Any], int, dict[str, str], places.Places], int]


def keep(directory: Path, start_rank: StartRank) -> None:
    """Run the attempt of `directory`, as its records describe it, to its end.

    A second keeper of an attempt does nothing, nor does one that comes after the attempt was given up.
    """
    kept = records.folder(directory)
    lock = records.open_lock(kept / LOCK_FILE)
    while not records.take(lock):
        # Another keeper, which says so soon, or the engine, which only looks.
        if (kept / KEEPER_FILE).exists():
            return
        time.sleep(0.02)
    if (kept / KEEPER_FILE).exists() or (kept / OUTCOME_FILE).exists():
        return
    spec = records.read(kept / SPEC_FILE)
    if spec is None:
        raise FileNotFoundError(kept / SPEC_FILE)
    processes.adopt_orphans()
    # Signals are waited for, not handled: no race between looking and sleeping.
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    me = os.getpid()
    identity = {"pid": me, "start_time": processes.start_time(me), "boot_id": processes.boot_id()}
    group, temporary = _group(spec), places.temporary_of(spec)
    # Said before it is made: who comes after us removes it.
    left = {"group": group and str(group), "temporary": temporary and str(temporary)}
    records.write(kept / KEEPER_FILE, {**identity, "session": os.getsid(0), "host": socket.gethostname(), **left})
    outcome = _Gang(directory, spec, start_rank, places.Places(directory, spec), group, temporary).run()
    records.write(kept / OUTCOME_FILE, outcome)


_AWAITED = {signal.SIGCHLD, signal.SIGTERM}


def _group(spec: dict[str, Any]) -> Path | None:
    """The control group that the gang is to have; None when it needs none, or can have none."""
    if not (spec.get("memory_bytes_per_rank") or spec.get("cores_per_rank")):
        return None
    base = cgroups.find_base()
    return None if base is None else base / f"dlmesh-{spec['job_id']}-{spec['attempt']}"


@dataclass
class _Gang:
    directory: Path
    spec: dict[str, Any]
    start_rank: StartRank
    places: places.Places
    group: Path | None
    temporary: Path | None
    pids: dict[int, int] = field(default_factory=dict)
    exit_codes: dict[int, int] = field(default_factory=dict)
    reason: str = ""
    failed_rank: int | None = None
    # The rank whose exit code is why.
    cause: int | None = None
    stopped: bool = False
    final: bool = False

    def run(self) -> dict[str, Any]:
        started_at = time.time()
        try:
            self.places.prepare(self.group, self.temporary)
            self._start()
            self._watch(started_at)
        except accounts.RefusedError as error:
            self.reason, self.final = str(error), True
        except Exception as error:
            self.reason = self.reason or f"the ranks could not be started: {error}"
        self._end(FAILURE_GRACE_SECONDS)
        self._kill_leftovers()
        self.places.close()
        failed = bool(self.reason) or any(self.exit_codes.get(rank) != 0 for rank in range(self.spec["ranks"]))
        return {
            "state": "stopped" if self.stopped else "failed" if failed else "finished",
            "reason": self.reason,
            "failed_rank": self.failed_rank,
            "final": self.final,
            "started_at": started_at,
            "ended_at": time.time(),
            "host": socket.gethostname(),
            "ranks": [
                {
                    "rank": rank,
                    "pid": self.pids.get(rank, 0),
                    "exit_code": self.exit_codes.get(rank),
                    "is_cause": rank == self.cause,
                }
                for rank in range(self.spec["ranks"])
            ],
        }

    def _start(self) -> None:
        ranks = self.spec["ranks"]
        self.places.make_outputs()
        if warning := self.spec.get("warning"):
            self._warn(warning)
        gpus = self.spec.get("gpus")
        port = _free_port() if ranks > 1 else 0
        for rank in range(ranks):
            environment = {**self.spec["environment"], **self.places.environment()}
            if ranks > 1:
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            if gpus is not None:
                environment |= gpu_environment(gpus, rank)
            self.pids[rank] = self.start_rank(self.spec, rank, environment, self.places)
        started = [processes.start_time(self.pids[rank]) for rank in range(ranks)]
        rows = [{"rank": rank, "pid": self.pids[rank], "start_time": started[rank]} for rank in range(ranks)]
        group = self.places.group and str(self.places.group)
        records.write(records.folder(self.directory) / RANKS_FILE, {"ranks": rows, "group": group}, durable=False)

    def _watch(self, started_at: float) -> None:
        """Until all ranks have ended, one failed, a stop was asked for, or a limit was passed."""
        limit = self.spec.get("max_seconds") or 0
        max_silent_seconds = self.spec.get("max_silent_seconds") or 0
        signs = watches.Signs(self.directory, self.spec["ranks"])
        disk = watches.Disk(
            (self.directory.parent, self.spec["working_directory"]), self.spec.get("max_disk_bytes") or 0
        )
        # The kernel watches a control group by itself.
        memory = watches.Memory(0 if self.places.group is not None else self.places.memory_bytes)
        ticks = [TICK_SECONDS, *([max_silent_seconds / 4] if max_silent_seconds else [])]
        tick = min([*ticks, *([watches.MEMORY_SECONDS] if memory.most_bytes else [])])
        while len(self.exit_codes) < len(self.pids):
            if limit and time.time() - started_at > limit:
                self.reason = f"ran longer than the allowed {limit:g} seconds"
                return
            received = signal.sigtimedwait(_AWAITED, tick)
            self._reap()
            # A stop may arrive together with the end of a rank that was told to stop as well: the stop wins.
            if received is not None and received.si_signo == signal.SIGTERM:
                self.stopped = True
                self._end(self.spec["grace_seconds"])
                return
            failed = [rank for rank, code in self.exit_codes.items() if code != 0]
            if failed:
                # Of several that ended together one ended by a signal is the cause: the others lost their partner.
                rank = self.failed_rank = self.cause = min(failed, key=lambda rank: (self.exit_codes[rank] > 0, rank))
                self.reason = f"rank {rank} {describe_exit(self.exit_codes[rank])}"
                short = next((rank for rank in self.pids if self.places.killed_for_memory(rank)), None)
                if short is not None:
                    self._fail_for_memory(short)
                return
            running = [rank for rank in self.pids if rank not in self.exit_codes]
            if not running:
                return
            if max_silent_seconds:
                rank, seconds = signs.most_silent(running)
                if seconds > max_silent_seconds:
                    self.failed_rank = rank
                    self.reason = f"rank {rank} gave no sign of life for {max_silent_seconds:g} s"
                    return
            if passed := disk.look():
                self.reason, self.final = passed, True
                return
            if (greedy := memory.look({rank: self.pids[rank] for rank in running})) is not None:
                # At once: the machine may have nothing left while it saves a checkpoint.
                processes.send_signal([self.pids[greedy], *processes.descendants(self.pids[greedy])], signal.SIGKILL)
                self._fail_for_memory(greedy)
                return
            if warning := disk.warning():
                self._warn(warning)

    def _fail_for_memory(self, rank: int) -> None:
        allowed = sizes.describe_bytes(self.places.memory_bytes)
        self.cause = None
        self.failed_rank, self.reason = rank, f"rank {rank} used more than the allowed {allowed} of memory"

    def _warn(self, text: str) -> None:
        """A line among the errors of rank 0, which is the log that people look into."""
        # The program may have put something else in its place.
        with contextlib.suppress(OSError), os.fdopen(places.open_output(self.directory / "rank-0.err"), "a") as file:
            file.write(f"warning: {text}\n")

    def _end(self, grace_seconds: float) -> None:
        """SIGTERM to the ranks still running, then SIGKILL to everything below us."""
        running = [pid for rank, pid in self.pids.items() if rank not in self.exit_codes]
        if not running:
            return
        processes.send_signal(running, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while len(self.exit_codes) < len(self.pids) and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait(_AWAITED, min(left, 1.0))
            self._reap()
        while len(self.exit_codes) < len(self.pids):
            processes.send_signal(processes.descendants(os.getpid()), signal.SIGKILL)
            signal.sigtimedwait(_AWAITED, 0.1)
            self._reap()

    def _kill_leftovers(self) -> None:
        """What the ranks started and left behind, also in sessions of its own."""
        deadline = time.monotonic() + LEFTOVER_GRACE_SECONDS
        # Orphans are our children: without any there is nothing below us, and no need to look at all processes.
        while self._has_children() and (leftovers := processes.descendants(os.getpid())):
            late = time.monotonic() > deadline
            processes.send_signal(leftovers, signal.SIGKILL if late else signal.SIGTERM)
            signal.sigtimedwait(_AWAITED, 0.05)
            self._reap()

    @staticmethod
    def _has_children() -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for rank, known in self.pids.items():
                if known == pid:
                    self.exit_codes[rank] = os.waitstatus_to_exitcode(status)


def gpu_environment(gpus: list[list[int]], rank: int) -> dict[str, str]:
    """What lets a rank see its GPUs; `gpus` are the devices of each rank.

    With one whole device each all see the devices of the gang and take the one that LOCAL_RANK counts to, as under
    torchrun. Else a rank sees its own only, and its local rank is 0, for libraries take it for a device's number.
    """
    devices = [device for of_rank in gpus for device in of_rank]
    if len(set(devices)) == len(devices) == len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus[rank])), "LOCAL_RANK": "0"}


def describe_exit(code: int) -> str:
    """`exited with code 3`, or `was ended by SIGKILL` for a negative code."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def prepare_rank(place: places.Places, rank: int, parent_pid: int) -> None:
    """In a forked child: put it in its place, tie it to the keeper, give it default signals and its output files."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    os.setpgid(0, 0)
    for target, name in ((1, f"rank-{rank}.out"), (2, f"rank-{rank}.err")):
        descriptor = places.open_output(place.directory / name)
        os.dup2(descriptor, target)
        os.close(descriptor)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    place.enter(rank)
    # To become another user undoes the tie.
    processes.die_with_parent(parent_pid)
    place.hide()


def execute_rank(spec: dict[str, Any], rank: int, environment: dict[str, str], place: places.Places) -> int:
    """Start a rank cold: fork and exec the command; its pid."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        prepare_rank(place, rank, keeper)
        os.chdir(spec["working_directory"])
        command = list(spec["command"])
        if command[0] == "python":
            command[0] = sys.executable
        os.execvpe(command[0], command, environment)
    except BaseException as error:
        os.write(2, f"cannot start {spec['command'][0]!r}: {error}\n".encode())
    os._exit(127)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    attempt_directory = Path(sys.argv[1])
    keep(attempt_directory, execute_rank)
