"""Gangs on this machine: a keeper process for each attempt, forked from the warm pool when it may be."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servicekit.folders import remove_folder
from workerkit.confinement import hiding

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.engines import outcomes
from scheduling_service.engines.base import Attempt, AttemptFacts, Engine, Observation, Phase
from scheduling_service.engines.environment import inherited
from scheduling_service.engines.local import cgroups, group_rules, places, processes, records
from scheduling_service.engines.local.descriptions import Descriptions
from scheduling_service.engines.local.ends import KeeperEnds
from scheduling_service.engines.local.keeper import (
    KEEPER_FILE,
    LOCK_FILE,
    LOG_FILE,
    OUTCOME_FILE,
    RANKS_FILE,
    SPEC_FILE,
)

log = logging.getLogger(__name__)

START_SECONDS = 15.0
# How long a look at an attempt may wait for what was killed to go.
ORPHAN_SECONDS = 1.0
POOL_RESTART_SECONDS = 2.0
# Of the home.
PRIVATE_FOLDERS = ("db", "log", "run")
# By it a supervisor finds what is left of one that was killed.
POOL_MARKS = ("DLMESH_SUPERVISED_HOME",)
ENDING = "what the ranks had started is being ended"
KEEPER_PROGRAM = Path(__file__).with_name("keeper.py")


class LocalEngine(Engine):
    """`home` is the platform's home; `warm_pool` False starts every rank cold."""

    def __init__(self, home: Path, warm_pool: bool = True) -> None:
        self._home = home
        self._warm_pool = warm_pool
        self._pool: subprocess.Popen[bytes] | None = None
        self._pool_watch: asyncio.Task[None] | None = None
        self._children: set[int] = set()
        # Attempts that this process launched and whose keeper it has not seen yet.
        self._launched: set[Path] = set()
        self._descriptions = Descriptions(shutil.which("nvidia-smi"))
        self._ends = KeeperEnds()

    def on_news(self, tell: Callable[[], None]) -> None:
        self._ends.tell = tell

    def check_group(self, group: InstanceGroup) -> None:
        group_rules.check(group)

    async def open(self) -> None:
        await asyncio.to_thread(self._close_folders)
        if not hiding.supported_abi():
            log.warning(
                "this kernel has no Landlock: programs can read what the platform's user can, its passwords and "
                "databases, too; only those of instance groups with an execution user cannot"
            )
        if self._warm_pool:
            self._pool_watch = asyncio.create_task(self._keep_pool(), name="warm-pool")

    async def close(self) -> None:
        self._ends.close()
        if self._pool_watch is not None:
            self._pool_watch.cancel()
            await asyncio.gather(self._pool_watch, return_exceptions=True)
        if self._pool is not None:
            self._pool.kill()
            self._pool.wait()
            shutil.rmtree(self._socket_path().parent, ignore_errors=True)

    async def launch(self, attempt: Attempt) -> None:
        directory = attempt.directory
        kept = records.folder(directory)
        if (kept / KEEPER_FILE).exists() or (kept / OUTCOME_FILE).exists():
            return
        await asyncio.to_thread(self._write_spec, attempt)
        self._launched.add(directory)
        if attempt.warm and await self._launch_warm(directory):
            return
        keeper = _spawn_keeper(directory)
        self._children.add(keeper)
        self._ends.watch(keeper)

    async def observe(self, directory: Path) -> Observation:
        self._reap()
        kept = records.folder(directory)
        record = records.read(kept / KEEPER_FILE)
        keeper = records.process_of(record)
        if keeper is not None and is_alive(keeper):
            # Also when it has written the outcome: it is about to end.
            self._launched.discard(directory)
            # Also one that an earlier process of ours launched.
            self._ends.watch(keeper.pid)
            return Observation(Phase.RUNNING, keeper_pid=keeper.pid)
        # Read after looking whether the keeper lives: it writes the outcome before it ends.
        if (kept / OUTCOME_FILE).exists():
            self._launched.discard(directory)
            return outcomes.observation_of(records.read(kept / OUTCOME_FILE) or {})
        if record is not None and keeper is not None:
            self._launched.discard(directory)
            if keeper.boot_id == processes.boot_id() and await asyncio.to_thread(_end_orphans, directory, record):
                return Observation(Phase.RUNNING, ENDING)
            return Observation(Phase.LOST, "the process that kept the ranks went without a word")
        if (kept / KEEPER_FILE).exists():
            return await asyncio.to_thread(_observe_unknown, directory)
        try:
            written = (kept / SPEC_FILE).stat().st_mtime
        except FileNotFoundError:
            return Observation(Phase.UNKNOWN)
        if directory not in self._launched and not records.is_locked(kept / LOCK_FILE):
            # Of a process that was killed before or while it started the keeper. To launch again is safe either way.
            return Observation(Phase.UNKNOWN)
        reason = f"the process that keeps the ranks did not start; see {LOG_FILE}"
        if time.time() - written >= START_SECONDS and _seal(directory, Phase.LOST, reason):
            return Observation(Phase.LOST, reason)
        return Observation(Phase.STARTING)

    async def stop(self, directory: Path) -> None:
        kept = records.folder(directory)
        keeper = records.process_of(records.read(kept / KEEPER_FILE))
        if keeper is not None:
            if is_alive(keeper):
                processes.send_signal([keeper.pid], signal.SIGTERM)
        elif (kept / KEEPER_FILE).exists():
            # It cannot be told; when its ranks have ended it ends by itself.
            await asyncio.to_thread(_end_marked, directory)
        elif (kept / SPEC_FILE).exists():
            _seal(directory, Phase.STOPPED, "stopped before it was started")

    async def describe(self, directory: Path) -> AttemptFacts:
        kept = records.folder(directory)
        spec, *others = (records.read(kept / name) for name in (SPEC_FILE, KEEPER_FILE, RANKS_FILE, OUTCOME_FILE))
        return await asyncio.to_thread(
            self._descriptions.describe, directory, socket.gethostname(), spec or {}, *others
        )

    def _reap(self) -> None:
        """Keepers that we started cold are our children until we end; take note of those that ended."""
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(pid)

    def _write_spec(self, attempt: Attempt) -> None:
        attempt.directory.mkdir(parents=True, exist_ok=True)
        kept = records.make(attempt.directory)
        spec = {
            "job_id": attempt.job_id,
            "attempt": attempt.number,
            "ranks": attempt.ranks,
            "command": list(attempt.command),
            "environment": dict(attempt.environment),
            "working_directory": attempt.working_directory or str(attempt.directory),
            "grace_seconds": attempt.grace_seconds,
            "max_seconds": attempt.max_seconds,
            "max_silent_seconds": attempt.max_silent_seconds,
            "max_disk_bytes": attempt.max_disk_bytes,
            "gpus": None if attempt.gpus is None else [list(devices) for devices in attempt.gpus],
            "warning": attempt.warning,
            "memory_bytes_per_rank": attempt.memory_bytes_per_rank,
            "cores_per_rank": attempt.cores_per_rank,
            "execution_user": attempt.execution_user,
            "home": str(self._home.resolve()),
            "data_roots": [str(root) for root in attempt.data_roots],
        }
        # The environment holds the job's token.
        records.write(kept / SPEC_FILE, spec, mode=0o600)

    async def _launch_warm(self, directory: Path) -> bool:
        """Hand the attempt to the warm pool; False when it is not there or does not answer."""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_unix_connection(str(self._socket_path()))
                try:
                    if not self._is_pool(writer):
                        return False
                    writer.write(f"{directory}\n".encode())
                    answer = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
        word, _, keeper = answer.strip().partition(b" ")
        if word != b"started":
            return False
        if keeper.isdigit():
            self._ends.watch(int(keeper))
        return True

    def _is_pool(self, writer: asyncio.StreamWriter) -> bool:
        """Whether our pool listens there: programs may put a socket of their own in its place."""
        size = struct.calcsize("3i")
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return self._pool is not None and struct.unpack("3i", peer)[0] == self._pool.pid

    def _socket_path(self) -> Path:
        return warm_socket(self._home)

    def _close_folders(self) -> None:
        """What ranks of other users must not look into, also where the kernel hides nothing."""
        for name in PRIVATE_FOLDERS:
            with contextlib.suppress(FileNotFoundError):
                (self._home / name).chmod(0o700)

    async def _keep_pool(self) -> None:
        address = self._socket_path()
        address.parent.mkdir(mode=0o700, exist_ok=True)
        if address.parent.stat().st_uid != os.getuid():
            log.error("%s belongs to another user; jobs start cold", address.parent)
            return
        while True:
            with contextlib.suppress(FileNotFoundError):
                address.unlink()
            log_path = self._home / "log" / "warm-pool.log"
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("ab") as output:
                self._pool = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-m", "scheduling_service.engines.local.zygote", address, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**pool_environment(os.environ), "OMP_NUM_THREADS": "1"},
                )
            while self._pool.poll() is None:
                await asyncio.sleep(0.5)
            log.warning("the warm pool ended with %s; jobs start cold until it is back", self._pool.returncode)
            await asyncio.sleep(POOL_RESTART_SECONDS)


def warm_socket(home: Path) -> Path:
    """Where the warm pool of `home` answers, once it is warm."""
    # Not below the home: a socket's path may have 107 characters at most.
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dlmesh-{os.getuid()}-{digest}" / "warm"


def pool_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the warm pool sees of our environment. Ranks see it, too, as that of the process that they are forks of."""
    marks = {name: environ[name] for name in POOL_MARKS if name in environ}
    # One mark at least: by it we find what a killed keeper left behind.
    return {**inherited(environ), **marks, "DLMESH_WARM_POOL": "1"}


def _spawn_keeper(directory: Path) -> int:
    """Start a cold keeper in a session of its own; it goes on when we end."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-E", str(KEEPER_PROGRAM), str(directory)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(records.folder(directory) / LOG_FILE), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _observe_unknown(directory: Path) -> Observation:
    """An attempt whose keeper's record was replaced: given up once the keeper and what it started are gone."""
    if records.is_locked(records.folder(directory) / LOCK_FILE) or _end_marked(directory):
        return Observation(Phase.RUNNING, ENDING)
    return outcomes.not_ours()


def _end_marked(directory: Path) -> bool:
    """Kill what says that it is of the attempt; True until there was nothing."""
    left = processes.left_behind(-1, f"DLMESH_JOB_DIR={directory}")
    processes.end(left, ORPHAN_SECONDS)
    return bool(left)


def _end_orphans(directory: Path, record: Mapping[str, Any]) -> bool:
    """Kill what a keeper that is gone left; True until there was nothing, for the next attempt needs its place.

    The ranks die with the keeper, but that takes the kernel a moment; what they had started does not.
    """
    group, session, temporary = (record.get(key) for key in ("group", "session", "temporary"))
    if isinstance(group, str) and Path(group).name.startswith("dlmesh-"):
        cgroups.remove(Path(group))
    if not records.is_pid(session):
        return False
    rows = map(records.process_of, records.rows_of(records.read(records.folder(directory) / RANKS_FILE)))
    left = {row.pid for row in rows if row and row.start_time and processes.start_time(row.pid) == row.start_time}
    left.update(processes.left_behind(session, f"DLMESH_JOB_DIR={directory}"))
    processes.end(left, ORPHAN_SECONDS)
    if not left and isinstance(temporary, str) and places.is_temporary(Path(temporary)):
        with contextlib.suppress(OSError):
            remove_folder(Path(temporary))
    return bool(left)


def _seal(directory: Path, phase: Phase, reason: str) -> bool:
    """End an attempt that has no keeper, so that one that comes late does nothing; False when it has one."""
    kept = records.folder(directory)
    with records.open_lock(kept / LOCK_FILE) as lock:
        if not records.take(lock) or (kept / KEEPER_FILE).exists() or (kept / OUTCOME_FILE).exists():
            return False
        outcome: dict[str, Any] = {"state": phase.value, "reason": reason, "failed_rank": None, "ranks": []}
        records.write(kept / OUTCOME_FILE, outcome)
        return True


def is_alive(process: records.Process) -> bool:
    """Whether the process that was started then, in this boot, runs."""
    started = process.start_time
    return (
        process.boot_id == processes.boot_id() and started is not None and processes.start_time(process.pid) == started
    )
