"""How kernels are started: where they work, what they see, what they may take."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dlmesh_sdk
from workerkit.confinement import hiding

from inference_service.kernels.domain.pools import GpuUse, KernelLaunch
from inference_service.kernels.engine.gpus import VARIABLE, Gpus
from inference_service.kernels.engine.limits import PoolLimits
from inference_service.kernels.engine.nursery import INHERITED, WARM_MODULES, Nursery
from inference_service.kernels.engine.output import KernelOutput
from inference_service.kernels.engine.process import KernelProcess

log = logging.getLogger(__name__)

HOST = Path(__file__).parent.parent / "worker" / "kernel_host.py"
SDK = Path(dlmesh_sdk.__file__).parent.parent
# What the outputs of a frame hold beside one of the largest size.
FRAME_BYTES = 2 * 1024**2
# Read when a process starts or a library is loaded: forks of a process that has done so would not notice.
_EARLY = re.compile(r"(LD_|PYTHON|OMP_|MKL_|OPENBLAS_|KMP_|MALLOC_|TORCH|PYTORCH|NUMEXPR_)", re.IGNORECASE)
_IMPORTS_TORCH = re.compile(rb"^[ \t]*(from|import([ \t]+[\w.]+[ \t]*,)*)[ \t]+torch\b", re.MULTILINE)
_SCANNED_FILES, _SCANNED_BYTES = 100, 1024**2


class KernelStarter:
    """Starts kernels for pools. `home` is the platform's, `gpus` what kernels share; `python` runs those that are not
    forks of a process that has torch."""

    def __init__(self, home: Path, limits: PoolLimits, gpus: Gpus, python: str = sys.executable) -> None:
        self._home, self.limits, self.gpus, self.python = home, limits, gpus, python
        self._plain, self._warm = Nursery(), Nursery(WARM_MODULES)
        self._importing_torch: dict[str, bool] = {}
        self._is_warned = False

    @property
    def pids(self) -> list[int]:
        """Of the processes that kernels are forks of."""
        return [nursery.pid for nursery in (self._plain, self._warm) if nursery.pid is not None]

    async def prepare(self, launch: KernelLaunch) -> None:
        """Before its first `start`: have what its kernels need imported by then."""
        if not self._is_warned and not hiding.supported_abi():
            log.warning("this kernel has no Landlock: kernels of models can read what the platform's user can")
        self._is_warned = True
        is_for_warm = self.limits.is_warm and not any(_EARLY.match(name) for name in launch.environment)
        self._importing_torch[launch.uid] = is_for_warm and await asyncio.to_thread(imports_torch, launch.folder)
        if self._importing_torch[launch.uid]:
            await self._warm.start()

    async def start(self, launch: KernelLaunch, number: int, gpus: str, output: KernelOutput) -> KernelProcess:
        """As `KernelProcess.start` says."""
        nursery = await self._nursery(launch)
        spec = self._spec(launch, number, gpus, is_warm=nursery is self._warm)
        return await KernelProcess.start(nursery, spec, output, FRAME_BYTES + self.limits.output_bytes)

    async def _nursery(self, launch: KernelLaunch) -> Nursery:
        if self._importing_torch.get(launch.uid):
            try:
                # To wait takes no longer than to import, and the next one need not.
                await self._warm.start()
                await self._warm.wait_ready()
            except OSError as error:
                log.warning("kernels import torch for themselves: %s", error)
            else:
                return self._warm
        await self._plain.start()
        await self._plain.wait_ready()
        return self._plain

    async def close(self) -> None:
        """End what was started for all of them."""
        await self._plain.close()
        await self._warm.close()

    def _spec(self, launch: KernelLaunch, number: int, gpus: str, *, is_warm: bool) -> dict[str, Any]:
        needed = [str(launch.folder), str(SDK), str(HOST), self.python]
        memory = self.limits.memory_bytes
        return {
            "kernel": number,
            "command": [self.python, "-P", "-B", str(HOST), str(SDK), str(launch.folder), launch.kernel_file],
            "sdk": str(SDK),
            "folder": str(launch.folder),
            "file": launch.kernel_file,
            "home": str(self._home),
            "work": str(work_folder(launch, number)),
            "readable": [str(launch.folder.parent), *needed, sys.prefix, sys.base_prefix],
            "needed": needed,
            "user": launch.execution_user,
            "umask": launch.umask,
            "environment": self._environment(launch, number, gpus),
            "cores": math.ceil(launch.limits.cores),
            "memory_bytes": min(launch.limits.memory_bytes, memory) if launch.limits.memory_bytes else memory,
            "file_bytes": self.limits.file_bytes,
            "folder_bytes": self.limits.folder_bytes,
            "sees_gpus": bool(gpus),
            "is_warm": is_warm,
        }

    def _environment(self, launch: KernelLaunch, number: int, gpus: str) -> Mapping[str, str]:
        work = str(work_folder(launch, number))
        threads = str(math.ceil(launch.limits.cores) or len(os.sched_getaffinity(0)))
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH') or os.defpath}"
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **{"PATH": path, "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8"},
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
            **{"REDHARE_MODEL_NAME": launch.name, "REDHARE_MODEL_PATH": str(launch.folder)},
            **launch.environment,
            **({} if launch.gpu is GpuUse.SHARED and not gpus else {VARIABLE: gpus}),
        }


def run_folder(launch: KernelLaunch) -> Path:
    """Where a model's kernels work and print; removed with the model."""
    return launch.folder.parent / "run"


def work_folder(launch: KernelLaunch, number: int) -> Path:
    """Where one kernel works and may write."""
    return run_folder(launch) / str(number)


def imports_torch(folder: Path) -> bool:
    """Whether a program does, as far as its files say; a wrong answer costs time or memory only."""
    files = sorted(path for path in folder.glob("**/*.py") if path.is_file() and not path.is_symlink())
    for path in files[:_SCANNED_FILES]:
        try:
            with path.open("rb") as file:
                if _IMPORTS_TORCH.search(file.read(_SCANNED_BYTES)):
                    return True
        except OSError:
            continue
    return False
