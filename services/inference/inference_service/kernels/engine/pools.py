"""The kernels of all models, and how they share what the machine may have of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from servicekit.folders import remove_folder

from inference_service.kernels.domain.pools import (
    KernelLaunch,
    KernelTask,
    NotStartedError,
    PoolPhase,
    PoolState,
    PoolStatistics,
)
from inference_service.kernels.domain.scaling import share
from inference_service.kernels.engine.gpus import Gpus, find_gpus
from inference_service.kernels.engine.limits import PoolLimits
from inference_service.kernels.engine.pool import Pool
from inference_service.kernels.engine.starter import KernelStarter, run_folder

log = logging.getLogger(__name__)


class KernelPools:
    """As `domain.pools.KernelPools` says. Kernels end with this process, however it ends."""

    def __init__(self, home: Path, limits: PoolLimits | None = None, gpus: Gpus | None = None) -> None:
        self._limits = limits or PoolLimits()
        self._starter = KernelStarter(home, self._limits, gpus or Gpus(find_gpus(os.environ)))
        self._pools: dict[str, Pool] = {}
        self._change, self._making = asyncio.Event(), asyncio.Lock()
        self._scheduling: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes of kernels, by model; those that they are forks of under an empty name."""
        found = {uid: [kernel.pid for kernel in pool.kernels if kernel.pid] for uid, pool in self._pools.items()}
        return {"": self._starter.pids, **found}

    async def ensure(self, launch: KernelLaunch) -> None:
        """Have a pool for it; see the contract. OSError for a disk or a machine in trouble."""
        while (pool := self._pools.get(launch.uid)) is not None and pool.is_draining:
            await pool.gone.wait()
            self._forget(launch.uid, pool)
        async with self._making:
            if launch.uid in self._pools or self._is_closed:
                return
            # What kernels of a service that was killed left.
            await asyncio.to_thread(_clear, run_folder(launch))
            await self._starter.prepare(launch)
            self._pools[launch.uid] = Pool(launch, self._starter, self._change.set)
        if self._scheduling is None:
            self._scheduling = asyncio.create_task(self._schedule_forever(), name="kernels")
        self._change.set()

    async def drain(self, uid: str) -> None:
        """End a pool in order; see the contract."""
        if (pool := self._pools.get(uid)) is not None:
            pool.drain()
            await pool.gone.wait()
            self._forget(uid, pool)

    def state(self, uid: str) -> PoolState:
        """What became of a pool."""
        pool = self._pools.get(uid)
        return pool.state if pool else PoolState(PoolPhase.ABSENT)

    async def submit(self, uid: str, task: KernelTask) -> str:
        """A task's output; see the contract."""
        pool = self._pools.get(uid)
        if pool is None:
            raise NotStartedError("the model is not started")
        return await pool.submit(task)

    def statistics(self, uid: str) -> PoolStatistics:
        """Of a pool now."""
        pool = self._pools.get(uid)
        return pool.statistics() if pool else PoolStatistics()

    async def close(self) -> None:
        """End all kernels."""
        self._is_closed = True
        if self._scheduling is not None:
            self._scheduling.cancel()
            await asyncio.gather(self._scheduling, return_exceptions=True)
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))
        self._pools.clear()
        await self._starter.close()

    def _forget(self, uid: str, pool: Pool) -> None:
        if self._pools.get(uid) is pool:
            del self._pools[uid]

    async def _schedule_forever(self) -> None:
        wait: float | None = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._change.wait()
            self._change.clear()
            try:
                wait = self._schedule()
            except Exception:
                log.exception("kernels are not scheduled")
                wait = 1.0

    def _schedule(self) -> float | None:
        """Give each pool its kernels; after how many seconds to look again unless something changes."""
        now = asyncio.get_running_loop().time()
        pools = list(self._pools.values())
        shares = share([pool.demand(now) for pool in pools], self._limits.max_kernels)
        room = self._limits.max_kernels - sum(len(pool.kernels) for pool in pools)
        # The poorest first: what there is room for now is theirs.
        for pool, number in sorted(zip(pools, shares, strict=True), key=lambda pair: len(pair[0].staying)):
            room -= pool.resize(number, room, now)
        if room <= 0 and any(len(pool.staying) < number for pool, number in zip(pools, shares, strict=True)):
            for kernel in (kernel for pool in pools for kernel in pool.kernels):
                kernel.end_overdue(now, self._limits.grace_seconds)
        looks = [look for pool in pools if (look := pool.look(now)) is not None]
        return min(looks, default=None)


def _clear(folder: Path) -> None:
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_folder(entry)
