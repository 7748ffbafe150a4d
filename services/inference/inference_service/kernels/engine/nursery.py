"""The process that kernels are forks of: started when the first is, and again when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from workerkit.confinement import hiding

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).parent.parent / "worker" / "kernel_nursery.py"
CONFINEMENT = Path(hiding.__file__).parent
WARM_MODULES = ("torch", "numpy", "PIL.Image", "dlmesh_sdk.kernel_program")
# Neither passwords and settings of the platform nor those of its database.
INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
MAX_ENDING_SECONDS = 10.0


class Nursery:
    """Forks guards, with `modules` imported; none: it executes a new interpreter for each kernel."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = modules
        self._process: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._readiness: asyncio.Task[bool] | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Begin to import; OSError when the machine has no room for it at the moment."""
        async with self._lock:
            if self.pid is not None:
                return
            await self._forget()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            flags = ("-B",) if self._modules else ("-S", "-B")
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", *flags, str(PROGRAM), str(theirs.fileno()), str(CONFINEMENT)),
                    *self._modules,
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={name: os.environ[name] for name in INHERITED if name in os.environ},
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            self._requests = ours
            self._readiness = asyncio.create_task(_is_answered(ours))

    async def wait_ready(self) -> None:
        """Until everything is imported; OSError when it ended before."""
        assert self._readiness is not None
        if not await asyncio.shield(self._readiness):
            raise ConnectionError("the process that starts kernels has ended")

    async def fork(self, descriptors: Sequence[int]) -> None:
        """Have a guard with copies of `descriptors`. OSError when it cannot be now, or the process has ended."""
        assert self._requests is not None
        # A few bytes: they are taken at once, or there is no room for them.
        socket.send_fds(self._requests, [b"fork"], list(descriptors))

    async def close(self) -> None:
        """End it; what it forked goes on."""
        async with self._lock:
            await self._forget()

    async def _forget(self) -> None:
        process, self._process = self._process, None
        if self._readiness is not None:
            self._readiness.cancel()
            await asyncio.gather(self._readiness, return_exceptions=True)
        if self._requests is not None:
            self._requests.close()
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(MAX_ENDING_SECONDS):
                await process.wait()
        else:
            log.warning("the process that starts kernels ended with %s; it is started again", process.returncode)


async def _is_answered(requests: socket.socket) -> bool:
    try:
        return bool(await asyncio.get_running_loop().sock_recv(requests, 16))
    except OSError:
        return False
