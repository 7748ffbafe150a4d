"""A platform as a child process: for the demo, the benchmarks and the tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dlmesh_platform.client import Client
from dlmesh_platform.endpoints import free_port

STOP_SECONDS = 20.0


class LaunchError(RuntimeError):
    """The platform did not come up; the text says what it printed."""


class RunningPlatform:
    """`dlmesh serve` of one home, started by `launch`."""

    def __init__(self, home: Path, url: str, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.url = url
        self.process = process

    def client(self, user: str = "Admin", password: str | None = None) -> Client:
        """As the administrator unless another user and their password are given."""
        return Client(self.url, user, password) if password else Client.of_home(self.home, self.url, user)

    def pids(self) -> dict[str, int]:
        """Process ids of the supervised processes by name."""
        state = json.loads((self.home / "run" / "supervisor.json").read_text())
        return {name: int(pid) for name, pid in state["processes"].items()}

    def stop(self) -> int:
        """SIGTERM and wait; the exit code (0 when all went well)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def start(home: Path, environment: Mapping[str, str] | None = None, *, seconds: float = 120.0) -> RunningPlatform:
    """Start `dlmesh serve` on `home` and wait until it is healthy; on a free port unless DLMESH_HTTP_PORT is given.

    Of our own environment no DLMESH_ variable reaches it: it shares no database with the platform of the user.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    wanted = dict(environment or {})
    port = int(wanted.setdefault("DLMESH_HTTP_PORT", str(free_port(set()))))
    output = home / "log" / "supervisor.log"
    output.parent.mkdir(exist_ok=True)
    ready = home / "run" / "ready"
    ready.unlink(missing_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH_")}
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dlmesh_platform.cli", "serve"],
            env={**inherited, **wanted, "DLMESH_HOME": str(home), "COLUMNS": "140"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    platform = RunningPlatform(home, f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + seconds
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LaunchError(f"the platform did not start:\n{output.read_text()[-4000:]}")
            time.sleep(0.05)
    except BaseException:
        platform.stop()
        raise
    return platform


@contextlib.contextmanager
def launch(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[RunningPlatform]:
    """`start`, and `stop` when the block ends, however it ends."""
    platform = start(home, environment)
    try:
        yield platform
    finally:
        platform.stop()
