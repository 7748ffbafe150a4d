"""Which GPUs kernels see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inference_service.kernels.domain.pools import GpuUse

VARIABLE = "CUDA_VISIBLE_DEVICES"


def find_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """By the names that CUDA takes: those that this service may use."""
    if VARIABLE in environ:
        return [name.strip() for name in environ[VARIABLE].split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(devices.glob("nvidia[0-9]*"))))]


class Gpus:
    """Which of them a kernel has to itself."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self._free = names, list(names)

    def take(self, use: GpuUse) -> str | None:
        """What a new kernel sees; None when it wants one of its own and there is none."""
        if use is GpuUse.NO:
            return ""
        if use is GpuUse.SHARED:
            return ",".join(self.names)
        return self._free.pop(0) if self._free else None

    def give_back(self, use: GpuUse, names: str) -> None:
        """Its kernel has ended."""
        if use is GpuUse.EXCLUSIVE:
            self._free.append(names)
