"""What this service reads from the environment besides the common settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from servicekit.settings import SettingError

DEFAULT_MAX_SILENT_SECONDS = 1800
DEFAULT_MAX_DISK_GIB = 100
DEFAULT_ZERO_STAGE = 1
DEFAULT_ASYNC_MAX_STALENESS = 16
DEFAULT_ORPHAN_GRACE_SECONDS = 3600
DEFAULT_STOP_GRACE_SECONDS = 8


@dataclass(frozen=True)
class TrainingSettings:
    """Limits of trainings and validations.

    DLMESH_TRAINING_MAX_SILENT_SECONDS   a worker without a sign of life for so long is hung; default 1800, 0: never
    DLMESH_TRAINING_MAX_DISK_GIB         how much one run may write; default 100, 0: no limit
    DLMESH_TRAINING_STOP_GRACE_SECONDS   what workers have for a last checkpoint when they are to end; default 8
    DLMESH_ZERO_STAGE                    ZeRO stage of programs whose ds_config.json names none; default 1
    DLMESH_ASYNC_MAX_STALENESS           steps after which an ASYNC training drops gradients; default 16
    DLMESH_ORPHAN_GRACE_SECONDS          how long ended runs of a model that has gone are kept; default 3600
    """

    max_silent_seconds: int = DEFAULT_MAX_SILENT_SECONDS
    max_disk_bytes: int = DEFAULT_MAX_DISK_GIB << 30
    stop_grace_seconds: float = DEFAULT_STOP_GRACE_SECONDS
    zero_stage: int = DEFAULT_ZERO_STAGE
    async_max_staleness: int = DEFAULT_ASYNC_MAX_STALENESS
    orphan_grace_seconds: float = DEFAULT_ORPHAN_GRACE_SECONDS

    @property
    def worker_environment(self) -> Mapping[str, str]:
        """What workers find in their environment; they do not see the service's own."""
        return {
            "DLMESH_ZERO_STAGE": str(self.zero_stage),
            "DLMESH_ASYNC_MAX_STALENESS": str(self.async_max_staleness),
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> TrainingSettings:
        """ValueError names the variable."""
        disk_gib = _number(environ, "DLMESH_TRAINING_MAX_DISK_GIB", DEFAULT_MAX_DISK_GIB)
        return cls(
            max_silent_seconds=int(_number(environ, "DLMESH_TRAINING_MAX_SILENT_SECONDS", DEFAULT_MAX_SILENT_SECONDS)),
            max_disk_bytes=int(disk_gib * 2**30),
            stop_grace_seconds=_number(environ, "DLMESH_TRAINING_STOP_GRACE_SECONDS", DEFAULT_STOP_GRACE_SECONDS),
            zero_stage=_whole(environ, "DLMESH_ZERO_STAGE", DEFAULT_ZERO_STAGE, range(4)),
            async_max_staleness=_whole(
                environ, "DLMESH_ASYNC_MAX_STALENESS", DEFAULT_ASYNC_MAX_STALENESS, range(1_000_001)
            ),
            orphan_grace_seconds=_number(environ, "DLMESH_ORPHAN_GRACE_SECONDS", DEFAULT_ORPHAN_GRACE_SECONDS),
        )


def _whole(environ: Mapping[str, str], name: str, default: int, allowed: range) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or int(text) not in allowed:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: {allowed[0]} to {allowed[-1]}")
    return int(text)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a number of at least 0")
    return value
