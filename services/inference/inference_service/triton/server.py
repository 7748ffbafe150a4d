"""A Triton server as a child process: started, published, restarted when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from servicekit.reconcile import Next
from workerkit.confinement import hiding

from inference_service.triton.addresses import address_file, write_addresses
from inference_service.triton.installation import EXIT_SECONDS, HOST, Installation, Ports
from inference_service.triton.liveness import Liveness
from inference_service.triton.stubs import end_strays, running_stubs

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
STABLE_SECONDS = 10.0
PORT_PATIENCE_SECONDS = 4.0
LOG_BYTES = 64 * 1024 * 1024
# Below the range from which the kernel takes ports for outgoing connections.
PORTS = range(20000, 32000)
SHARED_MEMORY = Path("/dev/shm")


class TritonServer:
    """Keeps one Triton running; `step` is a reconcile step. It dies with this process, and comes back on its old ports.

    One that hangs is killed. `on_start` is called when there is a new one, with nothing loaded.
    Its addresses are in `address_file(home)`.
    """

    def __init__(
        self,
        installation: Installation,
        home: Path,
        on_start: Callable[[], None] = lambda: None,
        make_liveness: Callable[[], Liveness] = Liveness,
    ) -> None:
        self._installation, self._on_start, self._make_liveness = installation, on_start, make_liveness
        self._liveness, self._http_port = make_liveness(), 0
        self._home = home
        self._repository = home / "inference" / "repository"
        self._address_file = address_file(home)
        self._log_file = home / "log" / "triton.log"
        self._shm_prefix = f"dlmesh_{hashlib.sha256(str(home).encode()).hexdigest()[:12]}_"
        # What must be sent to load and unload. Programs of this machine can see it in Triton's command line.
        self.key = secrets.token_hex(16)
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._due_at = 0.0
        self._backoff_seconds = FIRST_BACKOFF_SECONDS
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def step(self) -> Next:
        """Start it when it does not run and is due."""
        if self._stopping:
            return Next.LATER
        if self._process is not None and self._process.returncode is None:
            self._liveness.look(self._http_port)
            if self._liveness.hangs:
                log.error("Triton, process %d, does not answer any more; it is killed", self._process.pid)
                self._process.kill()
                await self._process.wait()
                return Next.AT_ONCE
            return Next.LATER
        now = time.monotonic()
        if self._process is not None:
            code, self._process = self._process.returncode, None
            if now - self._started_at > STABLE_SECONDS:
                self._backoff_seconds = FIRST_BACKOFF_SECONDS
            self._due_at = now + self._backoff_seconds
            log.warning("Triton ended with %s; again in %.1f s; see %s", code, self._backoff_seconds, self._log_file)
            self._backoff_seconds = min(self._backoff_seconds * 2, LONGEST_BACKOFF_SECONDS)
        if now >= self._due_at:
            await self._start()
        return Next.SOON

    def model_processes(self) -> dict[tuple[str, int], list[int]]:
        """Ids of the processes in which models run, by model and version."""
        return running_stubs(self.pid, self._repository) if self.pid is not None else {}

    async def stop(self) -> None:
        """End it: in order, then by force."""
        self._stopping = True
        await self._liveness.close()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
                try:
                    async with asyncio.timeout(EXIT_SECONDS + 2):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
        await asyncio.to_thread(end_strays, self._repository)
        self._remove_shared_memory()

    async def _start(self) -> None:
        self._repository.mkdir(parents=True, exist_ok=True)
        if strays := await asyncio.to_thread(end_strays, self._repository):
            log.warning("models outlived their Triton and were ended: %s", strays)
        ports = await self._choose_ports()
        self._remove_shared_memory()
        publish_addresses(self._address_file, ports)
        command = self._installation.command(self._repository, ports, self._shm_prefix, self.key)
        if not hiding.supported_abi():
            log.warning("this kernel has no Landlock: models that are served can read what the platform's user can")
        output = self._open_log()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._installation.confined(self._home, command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._installation.environment(),
            )
        finally:
            os.close(output)
        self._started_at = time.monotonic()
        await self._liveness.close()
        self._liveness, self._http_port = self._make_liveness(), ports.http
        log.info("Triton was started as process %d, gRPC on port %d", self._process.pid, ports.grpc)
        self._on_start()

    async def _choose_ports(self) -> Ports:
        kept = read_ports(self._address_file)
        deadline = time.monotonic() + PORT_PATIENCE_SECONDS
        while kept is not None and time.monotonic() < deadline:
            if all(is_free(port) for port in asdict(kept).values()):
                return kept
            await asyncio.sleep(0.05)
        free = [port for port in random.sample(PORTS, 50) if is_free(port)]
        return Ports(*free[:3])

    def _open_log(self) -> int:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_BYTES:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        return os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def shared_memory(self) -> list[Path]:
        """Its regions, also those that a killed one left."""
        return list(SHARED_MEMORY.glob(f"{self._shm_prefix}*"))

    def _remove_shared_memory(self) -> None:
        for region in self.shared_memory():
            with contextlib.suppress(OSError):
                region.unlink()


def is_free(port: int) -> bool:
    """Whether something could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def publish_addresses(file: Path, ports: Ports) -> None:
    """Write those of a server of our own."""
    write_addresses(
        file,
        {
            "http": f"http://{HOST}:{ports.http}",
            "grpc": f"{HOST}:{ports.grpc}",
            "metrics": f"http://{HOST}:{ports.metrics}/metrics",
        },
    )


def read_ports(file: Path) -> Ports | None:
    """The ports of our own server that ran last; None when there was none."""
    try:
        known = json.loads(file.read_text())
        texts = [known["http"], known["grpc"], known["metrics"].removesuffix("/metrics")]
        if any(HOST not in text for text in texts):
            return None
        return Ports(*(int(text.rpartition(":")[2]) for text in texts))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
