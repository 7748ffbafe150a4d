"""A room with real kernels, of a model that does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inference_service.kernels.domain.pools import (
    KernelLaunch,
    KernelStatistics,
    KernelTask,
    PoolPhase,
    PoolPolicy,
    TaskError,
)
from inference_service.kernels.engine.limits import PoolLimits
from inference_service.kernels.engine.pools import KernelPools

PATIENCE_SECONDS = 120.0
UID = "uid"

# What a task says is evaluated; `answer` is its output.
OBEDIENT = """
import json, os, signal, socket, sys, time
import redhareapiversion
from redhareapi import Kernel


def wait_for(path):
    print("begun " + path, flush=True)
    while not os.path.exists(path):
        time.sleep(0.005)


class Obedient(Kernel):
    def on_kernel_start(self, kernel_context):
        self.context = kernel_context
        self.description = json.loads(kernel_context.get_model_description())
        self.held = []
        exec(self.description.get("at_start", ""))

    def on_task_invoke(self, task_context):
        size, last = 1, task_context
        while last.next() is not None:
            size, last = size + 1, last.next()
        task = task_context
        while task is not None:
            answer = str(size)
            # Functions of a program see these.
            names = {"self": self, "task": task, "size": size, "last": last, "Kernel": Kernel, **globals()}
            exec(task.get_input_data(), names)
            answer = names.get("answer", answer)
            if answer is not None:
                task.set_output_data(answer)
            task = task.next()

    def on_kernel_shutdown(self):
        exec(self.description.get("at_end", ""))


if __name__ == "__main__":
    Obedient().run()
"""


class Room:
    """`pools` with one model, published in a platform's home."""

    def __init__(self, home: Path, limits: PoolLimits) -> None:
        self.home = home
        self.folder = home / "inference" / "kernels" / UID / "model"
        self.folder.mkdir(parents=True)
        self.gates = home.parent / "gates"
        self.gates.mkdir(mode=0o777, exist_ok=True)
        self.pools = KernelPools(home, limits)
        self.publish(OBEDIENT)

    def publish(self, program: str) -> None:
        """Its kernel."""
        (self.folder / "kernel.py").write_text(program)

    def launch(self, *, description: dict[str, Any] | None = None, **policy: Any) -> KernelLaunch:
        """How it is started; `policy` says what is not as always."""
        usual = PoolPolicy(kernel_min=1, kernel_max=1, schedule_interval_seconds=0.02)
        return KernelLaunch(
            UID, "obedient", self.folder, "kernel.py", description or {}, policy=replace(usual, **policy)
        )

    async def start(self, launch: KernelLaunch | None = None, **policy: Any) -> None:
        """Have a kernel that is ready, or a model that has failed."""
        await self.pools.ensure(launch or self.launch(**policy))
        await until(lambda: self.pools.state((launch or self.launch()).uid).phase is not PoolPhase.STARTING)

    async def ask(self, program: str, uid: str = UID, **fields: Any) -> str:
        """What comes of a task that runs `program`."""
        fields = {"id": "task", "timeout_seconds": PATIENCE_SECONDS, **fields}
        return await self.pools.submit(uid, KernelTask(input=program, **fields))

    def asking(self, program: str, uid: str = UID, **fields: Any) -> asyncio.Task[str]:
        """The same, begun."""
        return asyncio.create_task(self.ask(program, uid, **fields))

    def gate(self, name: str) -> tuple[str, Callable[[], None]]:
        """Program text that waits for it, and what opens it."""
        path = self.gates / name
        return f"wait_for({str(path)!r})\n", path.touch

    async def begun(self, name: str, times: int = 1) -> None:
        """So many wait, or waited, at that gate."""
        await until(lambda: self.log.count(f"begun {self.gates / name}\n") >= times)

    @property
    def log(self) -> str:
        """What kernels printed."""
        file = self.folder.parent / "run" / "kernel.log"
        return file.read_text() if file.exists() else ""

    @property
    def kernels(self) -> list[KernelStatistics]:
        """Those that have not ended."""
        return [kernel for kernel in self.pools.statistics(UID).kernels if kernel.status != "ended"]

    @property
    def pids(self) -> list[int]:
        """Of the kernels."""
        return self.pools.pids.get(UID, [])


@asynccontextmanager
async def kernel_room(home: Path, **limits: Any) -> AsyncIterator[Room]:
    """A room whose kernels end with it."""
    home.mkdir(parents=True, exist_ok=True)
    room = Room(home, PoolLimits(**{"first_backoff_seconds": 0.01, "is_warm": False, **limits}))
    try:
        yield room
    finally:
        await room.pools.close()


async def failure(asking: asyncio.Task[str] | Any) -> tuple[type[TaskError], str]:
    """Why a task has no output."""
    with pytest.raises(TaskError) as caught:
        await asking
    return type(caught.value), str(caught.value)


async def until(is_so: Callable[[], Any]) -> None:
    """Wait for it, on a machine that may be busy."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
