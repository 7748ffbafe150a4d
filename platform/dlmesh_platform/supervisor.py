"""Keeps the platform up: seven services and Envoy as children, restarted when they die, all gone when we end.

One thread, one loop that sleeps until a signal comes or something is due. Jobs run in sessions of their own (they
survive a restart of their service); as their subreaper we still see them and end them with the platform. What they
were doing goes on at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from dlmesh_platform import processes
from dlmesh_platform.endpoints import SERVICES, PortInUseError, internal_addresses, is_free, public_address

MARK = "DLMESH_SUPERVISED_HOME"
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
START_SECONDS = 90.0
DRAIN_SECONDS = 4.0
JOB_SECONDS = 3.0
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
# A child that lived this long starts again without delay.
STABLE_SECONDS = 10.0
LOG_BYTES = 64 * 1024 * 1024
USAGE_ERROR = 2
RESTARTS_AT_START = 5
# With a safe path a user's `python main.py` would not find the modules beside it.
INHERITED = {name: value for name, value in os.environ.items() if name not in {"PYTHONSAFEPATH", "PYTHONHOME"}}


class PlatformError(RuntimeError):
    """The platform cannot start or went wrong; the message is for the user."""


@dataclass
class Child:
    """A supervised process; `argv` is started again whenever it ends."""

    name: str
    argv: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    restarts: int = 0


@dataclass
class Platform:
    """What is to be run for one home. `environment` is what the children see on top of ours."""

    home: Path
    host: str
    port: int
    addresses: Mapping[str, str]
    environment: Mapping[str, str]
    children: list[Child] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the REST API is."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        return f"http://{host}:{self.port}"

    @property
    def data_roots(self) -> list[str]:
        """Folders that paths in requests may point into."""
        return self.environment["DLMESH_DATA_ROOTS"].split(":")

    def log_path(self, name: str) -> Path:
        """What a child prints."""
        return self.home / "log" / f"{name}.log"

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a child's log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log_path(name).read_text(errors="replace").splitlines()[-lines:])
        return ""


def describe(home: Path, environ: Mapping[str, str] = os.environ) -> Platform:
    """The platform of `home` as the environment wants it; creates its folders and chooses its ports."""
    host, port = public_address(environ)
    for folder in ("run", "log", "data"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "log").chmod(0o700)
    addresses = internal_addresses(home, environ)
    roots = [str(Path(root).resolve()) for root in environ.get("DLMESH_DATA_ROOTS", "").split(":") if root]
    environment = {
        "DLMESH_HOME": str(home),
        "DLMESH_HTTP_HOST": host,
        "DLMESH_HTTP_PORT": str(port),
        "DLMESH_DATA_ROOTS": ":".join(roots or [str(home / "data")]),
        "DLMESH_ACCESS_LOG": environ.get("DLMESH_ACCESS_LOG") or str(home / "log" / "access.log"),
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}:{environ.get('PATH', os.defpath)}",
        MARK: str(home),
        **{f"DLMESH_{name.upper()}_ADDRESS": address for name, address in addresses.items()},
    }
    children = [Child(name, [sys.executable, "-P", "-m", f"{name}_service"]) for name in SERVICES]
    children.append(Child("envoy", [sys.executable, "-P", "-m", "gateway_service.envoy"]))
    return Platform(home, host, port, addresses, environment, children)


@contextlib.contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the home: a second supervisor of it is refused."""
    (home / "run").mkdir(parents=True, exist_ok=True)
    with (home / "run" / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise PlatformError(f"{home} is in use by another dlmesh (process {lock.read().strip() or '?'})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class Supervisor:
    """Runs one platform. Call `run` in the main thread."""

    def __init__(
        self, platform: Platform, report: Callable[[str], None] = lambda line: print(line, flush=True)
    ) -> None:
        self._platform = platform
        self._report = report
        self._ready = False
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy between us and ourselves

    def run(self, when_ready: Callable[[], None]) -> None:
        """Start everything, call `when_ready` once all is healthy, keep it so until SIGTERM or SIGINT.

        PlatformError when it does not come up; in every case nothing of it runs when this returns.
        """
        processes.adopt_orphans()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        deadline = time.monotonic() + START_SECONDS
        try:
            self._await_public_port()
            while True:
                self._start_due()
                if not self._ready and self._is_healthy():
                    self._ready = True
                    (self._platform.home / "run" / "ready").touch()
                    when_ready()
                if not self._ready and time.monotonic() > deadline:
                    raise PlatformError(f"not healthy after {START_SECONDS:.0f} s: {self._unhealthy()}")
                received = signal.sigtimedwait(SIGNALS, self._seconds_to_wait())
                if received is not None and received.si_signo != signal.SIGCHLD:
                    return
                self._note_ends()
        finally:
            self._end()

    def _await_public_port(self) -> None:
        """An Envoy of a supervisor that was killed may need a moment to go."""
        deadline = time.monotonic() + 3.0
        while not is_free(self._platform.port, self._platform.host):
            if time.monotonic() > deadline:
                raise PortInUseError(f"port {self._platform.port} is in use; choose another one with DLMESH_HTTP_PORT")
            time.sleep(0.1)

    def _start_due(self) -> None:
        now = time.monotonic()
        started = False
        for child in self._platform.children:
            if child.process is None and child.due_at <= now:
                child.process = self._start(child)
                child.started_at = now
                started = True
        if started:
            self._write_state()

    def _start(self, child: Child) -> subprocess.Popen[bytes]:
        path = self._platform.log_path(child.name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                child.argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=self._platform.home,
                env={**INHERITED, **self._platform.environment},
                preexec_fn=processes.child_setup(os.getpid()),
            )
        finally:
            os.close(descriptor)

    def _note_ends(self) -> None:
        ended = processes.reap()
        for child in self._platform.children:
            if child.process is None or child.process.pid not in ended:
                continue
            code = child.process.returncode = ended[child.process.pid]
            child.process = None
            if code == USAGE_ERROR and not self._ready:
                raise PlatformError(f"{child.name} refuses to start: {self._platform.log_tail(child.name, 1)}")
            if child.restarts == RESTARTS_AT_START and not self._ready:
                raise PlatformError(f"{child.name} does not stay up:\n{self._platform.log_tail(child.name)}")
            now = time.monotonic()
            if now - child.started_at > STABLE_SECONDS:
                child.backoff_seconds = FIRST_BACKOFF_SECONDS
            child.due_at = now + child.backoff_seconds
            child.backoff_seconds = min(child.backoff_seconds * 2, LONGEST_BACKOFF_SECONDS)
            child.restarts += 1
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._report(f"{child.name} ended ({how}); it is started again. Log: {self._platform.log_path(child.name)}")

    def _seconds_to_wait(self) -> float:
        now = time.monotonic()
        due = [child.due_at - now for child in self._platform.children if child.process is None]
        return max(0.01, min([*due, 0.25 if not self._ready else 60.0]))

    def _is_healthy(self) -> bool:
        try:
            return self._http.get(f"{self._platform.url}/healthz", timeout=2.0).status_code == 200
        except requests.RequestException:
            return False

    def _unhealthy(self) -> str:
        """What /healthz says, or the log of what does not stay up."""
        restless = [child for child in self._platform.children if child.restarts]
        if restless:
            tails = (f"{child.name} keeps ending:\n{self._platform.log_tail(child.name)}" for child in restless)
            return "\n".join(tails)
        try:
            return self._http.get(f"{self._platform.url}/healthz", timeout=2.0).text
        except requests.RequestException as error:
            return f"{error}\n{self._platform.log_tail('envoy')}"

    def _write_state(self) -> None:
        """`run/supervisor.json`: who runs where, for `dlmesh status` and for tests."""
        state = {
            "pid": os.getpid(),
            "url": self._platform.url,
            "processes": {child.name: child.process.pid for child in self._platform.children if child.process},
        }
        file = self._platform.home / "run" / "supervisor.json"
        file.with_suffix(".new").write_text(json.dumps(state, indent=1))
        file.with_suffix(".new").replace(file)

    def _end(self) -> None:
        """Services first (they drain), then jobs and whatever else descends from us; nothing is left after 10 s."""
        own = [psutil.Process(child.process.pid) for child in self._platform.children if child.process is not None]
        processes.end_all(lambda: own, DRAIN_SECONDS)
        # Jobs of a supervisor that was killed are not our descendants, but they carry the mark.
        home = str(self._platform.home)
        processes.end_all(lambda: [*processes.descendants(), *processes.marked(MARK, home)], JOB_SECONDS)
        processes.reap()
        for name in ("supervisor.json", "ready"):
            (self._platform.home / "run" / name).unlink(missing_ok=True)
