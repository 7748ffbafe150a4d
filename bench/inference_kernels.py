"""What kernels of Elastic Distributed Inference cost: tasks a second, starts from nothing, and a kernel that is killed.

`python bench/inference_kernels.py` prints the table alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from inference_service.kernels.domain.pools import KernelLaunch, KernelTask, PoolPhase, PoolPolicy
from inference_service.kernels.engine.pools import KernelPools
from report import Row, announce

SECONDS, BARE_TASKS, STARTS, KILLS = 3.0, 5000, 7, 7
UID, PROMISED_START_SECONDS = "bench", 3.0

PING_PONG = """
import redhareapiversion
from redhareapi import Kernel

class PingPong(Kernel):
    def on_task_invoke(self, task_context):
        while task_context is not None:
            task_context.set_output_data("pong " + task_context.get_input_data())
            task_context = task_context.next()

PingPong().run()
"""
LINEAR = PING_PONG.replace("import redhareapiversion", "import redhareapiversion\nimport torch").replace(
    '"pong " + task_context.get_input_data()', 'f"pong {torch.nn.Linear(64, 64)(torch.ones(1, 64)).shape[0]}"'
)


def measure_kernels() -> list[Row]:
    """Rows of the section `inference`."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-") as folder:
        return uvloop.run(_measure(Path(folder)))


async def _measure(home: Path) -> list[Row]:
    announce("tasks of a kernel")
    pools = KernelPools(home)
    try:
        await _start(pools, _launch(home, "ping", PING_PONG))
        bare = _bare_rate()
        rows = []
        for callers in (1, 16, 64):
            rate = await _rate(pools, callers)
            what = f"ping-pong kernel, {callers} caller{'s' if callers > 1 else ''}, tasks a second"
            against = f"{bare:,.0f} with a bare process, one by one"
            rows.append(Row(what, f"{rate:,.0f}", against, f"{rate / bare:.2f}", "", None))
        announce("kernels that are killed")
        rows.append(await _recovery(pools))
        await pools.drain(UID)
        announce("kernels that start from nothing")
        rows.append(await _starts(pools, home, "ping", PING_PONG, "a kernel that imports nothing"))
        # The first one waits until torch is imported; it is the service's first, not a scale-up.
        cold = await _first_start(pools, home)
        rows.append(await _starts(pools, home, "linear", LINEAR, "a kernel that imports torch", cold))
        return rows
    finally:
        await pools.close()


def _launch(home: Path, name: str, program: str) -> KernelLaunch:
    folder = home / "inference" / "kernels" / name / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.py").write_text(program)
    policy = PoolPolicy(kernel_min=0, kernel_max=1, kernel_delay_release_seconds=3600)
    return KernelLaunch(UID, name, folder, "kernel.py", {"name": name}, policy=policy, is_proven=True)


async def _start(pools: KernelPools, launch: KernelLaunch) -> float:
    """Seconds from no kernel to the first answer."""
    await pools.ensure(launch)
    began = time.perf_counter()
    await pools.submit(UID, KernelTask("first", "0"))
    return time.perf_counter() - began


async def _rate(pools: KernelPools, callers: int) -> float:
    number, ends = 0, time.perf_counter() + SECONDS

    async def call() -> None:
        nonlocal number
        while time.perf_counter() < ends:
            number += 1
            text = str(number)
            if await pools.submit(UID, KernelTask(text, text)) != f"pong {text}":
                raise AssertionError(f"a wrong answer for {text}")

    await asyncio.gather(*(call() for _ in range(callers)))
    return number / SECONDS


async def _recovery(pools: KernelPools) -> Row:
    """From SIGKILL of the only kernel to the answer of a task that was sent in that moment."""
    took = []
    for _ in range(KILLS):
        [pid] = pools.pids[UID]
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        await pools.submit(UID, KernelTask("next", "0"))
        took.append(time.perf_counter() - began)
    return Row("a kernel is killed: until the next answer", _spread(took), "", "", "", None)


async def _first_start(pools: KernelPools, home: Path) -> float:
    took = await _start(pools, _launch(home, "linear", LINEAR))
    await pools.drain(UID)
    return took


async def _starts(pools: KernelPools, home: Path, name: str, program: str, what: str, cold: float = 0.0) -> Row:
    took = []
    for _ in range(STARTS):
        took.append(await _start(pools, _launch(home, name, program)))
        if pools.state(UID).phase is not PoolPhase.READY:
            raise AssertionError(pools.state(UID).reason)
        await pools.drain(UID)
    slowest = max(took)
    against = f"{cold:.2f} s the first time after a start of the service" if cold else ""
    return Row(
        f"from zero to the first answer, {what}",
        _spread(took),
        against,
        "",
        f"at most {PROMISED_START_SECONDS:g} s",
        slowest <= PROMISED_START_SECONDS,
    )


def _spread(took: list[float]) -> str:
    return f"{statistics.median(took) * 1000:.0f} ms, slowest {max(took) * 1000:.0f} ms"


def _bare_rate() -> float:
    """A child that answers frames of JSON, asked by one caller that waits for each answer."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        file = theirs.makefile("rwb")
        while header := file.read(4):
            text = json.dumps("pong " + json.loads(file.read(int.from_bytes(header, "big")))).encode()
            file.write(len(text).to_bytes(4, "big") + text)
            file.flush()
        os._exit(0)
    theirs.close()
    file, began = ours.makefile("rwb"), time.perf_counter()
    for number in range(BARE_TASKS):
        text = json.dumps(str(number)).encode()
        file.write(len(text).to_bytes(4, "big") + text)
        file.flush()
        file.read(int.from_bytes(file.read(4), "big"))
    took = time.perf_counter() - began
    file.close()
    ours.close()
    os.waitpid(pid, 0)
    return BARE_TASKS / took


if __name__ == "__main__":
    for row in measure_kernels():
        print(" | ".join(row.cells))
    sys.exit(0)
