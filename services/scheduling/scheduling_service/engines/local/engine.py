"""Gangs on this machine: a keeper process for each attempt, forked from the warm pool when it may be."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workerkit.spool import open_plain

from scheduling_service.domain.job import InstanceGroup
from scheduling_service.engines.base import Attempt, AttemptFacts, Engine, Observation, Phase, RankOutcome
from scheduling_service.engines.local import cgroups, group_rules, hiding, processes
from scheduling_service.engines.local.descriptions import Descriptions
from scheduling_service.engines.local.keeper import (
    KEEPER_FILE,
    LOCK_FILE,
    OUTCOME_FILE,
    RANKS_FILE,
    SPEC_FILE,
    take,
    write_json,
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
        if self._pool_watch is not None:
            self._pool_watch.cancel()
            await asyncio.gather(self._pool_watch, return_exceptions=True)
        if self._pool is not None:
            self._pool.kill()
            self._pool.wait()
            shutil.rmtree(self._socket_path().parent, ignore_errors=True)

    async def launch(self, attempt: Attempt) -> None:
        directory = attempt.directory
        if (directory / KEEPER_FILE).exists() or (directory / OUTCOME_FILE).exists():
            return
        await asyncio.to_thread(self._write_spec, attempt)
        self._launched.add(directory)
        if attempt.warm and await self._launch_warm(directory):
            return
        self._children.add(_spawn_keeper(directory))

    async def observe(self, directory: Path) -> Observation:
        self._reap()
        keeper = _read(directory / KEEPER_FILE)
        alive = keeper is not None and is_same_process(keeper["pid"], keeper["start_time"], keeper["boot_id"])
        # Read after looking whether the keeper lives: it writes the outcome before it ends.
        outcome = _read(directory / OUTCOME_FILE)
        if outcome is not None:
            ranks = tuple(RankOutcome(row["rank"], row["pid"], row["exit_code"]) for row in outcome["ranks"])
            phase, final = Phase(outcome["state"]), outcome.get("final", False)
            return Observation(phase, outcome["reason"], ranks, outcome["failed_rank"], final=final)
        if keeper is not None:
            self._launched.discard(directory)
            if alive:
                return Observation(Phase.RUNNING, keeper_pid=keeper["pid"])
            if keeper["boot_id"] == processes.boot_id() and await asyncio.to_thread(_end_orphans, directory, keeper):
                return Observation(Phase.RUNNING, "what the ranks had started is being ended")
            return Observation(Phase.LOST, "the process that kept the ranks went without a word")
        try:
            written = (directory / SPEC_FILE).stat().st_mtime
        except FileNotFoundError:
            return Observation(Phase.UNKNOWN)
        if directory not in self._launched and not _is_locked(directory):
            # Of a process that was killed before or while it started the keeper. To launch again is safe either way.
            return Observation(Phase.UNKNOWN)
        reason = "the process that keeps the ranks did not start; see keeper.log"
        if time.time() - written >= START_SECONDS and _seal(directory, Phase.LOST, reason):
            return Observation(Phase.LOST, reason)
        return Observation(Phase.STARTING)

    async def stop(self, directory: Path) -> None:
        keeper = _read(directory / KEEPER_FILE)
        if keeper and is_same_process(keeper["pid"], keeper["start_time"], keeper["boot_id"]):
            processes.send_signal([keeper["pid"]], signal.SIGTERM)
        elif keeper is None and (directory / SPEC_FILE).exists():
            _seal(directory, Phase.STOPPED, "stopped before it was started")

    async def describe(self, directory: Path) -> AttemptFacts:
        files = [_read(directory / name) for name in (SPEC_FILE, KEEPER_FILE, RANKS_FILE, OUTCOME_FILE)]
        spec, *others = files
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
        write_json(attempt.directory / SPEC_FILE, spec, mode=0o600)

    async def _launch_warm(self, directory: Path) -> bool:
        """Hand the attempt to the warm pool; False when it is not there or does not answer."""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_unix_connection(str(self._socket_path()))
                writer.write(f"{directory}\n".encode())
                answer = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return answer == b"started\n"

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
    kept = {name: value for name, value in environ.items() if not name.startswith("DLMESH_") or name in POOL_MARKS}
    # One mark at least: by it we find what a killed keeper left behind.
    return {**kept, "DLMESH_WARM_POOL": "1"}


def _spawn_keeper(directory: Path) -> int:
    """Start a cold keeper in a session of its own; it goes on when we end."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-E", str(KEEPER_PROGRAM), str(directory)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(directory / "keeper.log"), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _end_orphans(directory: Path, keeper: Mapping[str, Any]) -> bool:
    """Kill what a keeper that is gone left; True until there was nothing, for the next attempt needs its place.

    The ranks die with the keeper, but that takes the kernel a moment; what they had started does not.
    """
    if keeper.get("group"):
        cgroups.remove(Path(keeper["group"]))
    if "session" not in keeper:
        return False
    rows = (_read(directory / RANKS_FILE) or {}).get("ranks", ())
    left = {row["pid"] for row in rows if row["start_time"] and processes.start_time(row["pid"]) == row["start_time"]}
    left.update(processes.left_behind(keeper["session"], f"DLMESH_JOB_DIR={directory}"))
    processes.end(left, ORPHAN_SECONDS)
    return bool(left)


def _is_locked(directory: Path) -> bool:
    with (directory / LOCK_FILE).open("w") as lock:
        return not take(lock)


def _seal(directory: Path, phase: Phase, reason: str) -> bool:
    """End an attempt that has no keeper, so that one that comes late does nothing; False when it has one."""
    with (directory / LOCK_FILE).open("w") as lock:
        if not take(lock) or (directory / KEEPER_FILE).exists() or (directory / OUTCOME_FILE).exists():
            return False
        write_json(directory / OUTCOME_FILE, {"state": phase.value, "reason": reason, "failed_rank": None, "ranks": []})
        return True


def is_same_process(pid: int, start_time: int, boot_id: str) -> bool:
    """True while the process that was started then, in this boot, is alive."""
    return boot_id == processes.boot_id() and processes.start_time(pid) == start_time


def _read(path: Path) -> dict[str, Any] | None:
    """What we wrote ourselves: a rank with a user of its own may have put something in its place."""
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                return json.loads(file.read())
    except OSError:
        pass
    return None
