"""A real Envoy before the real gateway service; the other services are one backend of real contract services."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from servicekit.server import Application, Servicer
from servicekit.settings import DEFAULT_PORTS, ServiceSettings

PASSWORD = "a good password"
ADMIN = ("Admin", PASSWORD)
CACHE_SECONDS = 1.0


class Peers:
    """One server in a thread that stands for the six other services with what `servicers` it has."""

    def __init__(self, settings: ServiceSettings, servicers: Sequence[Servicer]) -> None:
        self._settings, self._servicers = settings, servicers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self) -> None:
        self._application = Application(name="backend", servicers=self._servicers)
        asyncio.run_coroutine_threadsafe(self._application.start(self._settings), self._loop).result(10)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call it where the servicers run."""
        self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._application.stop(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Platform:
    """Where everything is."""

    home: Path
    port: int
    admin_port: int
    secret: str
    backend: Any
    envoy: psutil.Process
    gateway: subprocess.Popen[bytes]
    start_gateway: Callable[[], subprocess.Popen[bytes]]
    sessions: list[requests.Session] = field(default_factory=list)

    def client(self, user: tuple[str, str] | None = ADMIN) -> requests.Session:
        """A new connection."""
        session = requests.Session()
        session.auth = user
        session.trust_env = False
        self.sessions.append(session)
        return session

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def counter(self, name: str) -> int:
        """One of Envoy's counters."""
        text = requests.get(f"http://127.0.0.1:{self.admin_port}/stats?filter=^{re.escape(name)}$", timeout=5).text
        return int(text.rpartition(":")[2])


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@contextlib.contextmanager
def running_platform(
    home: Path,
    make_peers: Callable[[ServiceSettings], Peers],
    *,
    peers_environment: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Platform]:
    """Envoy and the gateway service on `home`, and peers; each may have variables of its own."""
    http_port, admin_port, gateway_port, backend_port = free_ports(4)
    addresses = {f"DLMESH_{name.upper()}_ADDRESS": f"127.0.0.1:{backend_port}" for name in DEFAULT_PORTS}
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "DLMESH_HOME": str(home),
        "DLMESH_HTTP_PORT": str(http_port),
        "DLMESH_ENVOY_ADMIN_PORT": str(admin_port),
        "DLMESH_ADMIN_PASSWORD": PASSWORD,
        "DLMESH_CREDENTIAL_CACHE_SECONDS": str(CACHE_SECONDS),
        **addresses,
        "DLMESH_GATEWAY_ADDRESS": f"127.0.0.1:{gateway_port}",
    }
    backend = make_peers(ServiceSettings.from_environment("datasets", {**variables, **(peers_environment or {})}))
    backend.start()
    processes: list[subprocess.Popen[bytes]] = []

    def start(module: str) -> subprocess.Popen[bytes]:
        with (home / "out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module], env={**variables, **(environment or {})}, stdout=out, stderr=out
            )
        processes.append(process)
        return process

    envoy = psutil.Process(start("gateway_service.envoy").pid)
    gateway = start("gateway_service")
    running = Platform(
        home,
        http_port,
        admin_port,
        (home / "secret").read_text(),
        backend,
        envoy,
        gateway,
        lambda: start("gateway_service"),
    )
    try:
        wait_until(lambda: serves(running), 30, lambda: (home / "out").read_text())
        yield running
    finally:
        for session in running.sessions:
            session.close()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(10)
        backend.close()


def serves(platform: Platform) -> bool:
    try:
        return requests.get(platform.url("/healthz"), timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def assert_error(answer: requests.Response, status: int, code: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["code"] == code
    assert body["message"]
    return body


def basic_header(user: str, password: str) -> dict[str, str]:
    return {"authorization": requests.auth._basic_auth_str(user, password)}


def grpc_basic(user: str, password: str) -> tuple[tuple[str, str], ...]:
    return tuple(basic_header(user, password).items())
