"""What this service reads from the environment besides the common settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_MAX_SILENT_SECONDS = 1800
DEFAULT_MAX_DISK_GIB = 100
# Of the service's own environment workers find only these.
WORKER_VARIABLES = ("DLMESH_ZERO_STAGE",)


@dataclass(frozen=True)
class TrainingSettings:
    """Limits of trainings and validations.

    DLMESH_TRAINING_MAX_SILENT_SECONDS   a worker without a sign of life for so long is hung; default 1800, 0: never
    DLMESH_TRAINING_MAX_DISK_GIB         how much one run may write; default 100, 0: no limit
    DLMESH_ZERO_STAGE                    ZeRO stage of programs whose ds_config.json names none; default 1
    """

    max_silent_seconds: int = DEFAULT_MAX_SILENT_SECONDS
    max_disk_bytes: int = DEFAULT_MAX_DISK_GIB << 30
    worker_environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> TrainingSettings:
        """ValueError names the variable."""
        disk_gib = _number(environ, "DLMESH_TRAINING_MAX_DISK_GIB", DEFAULT_MAX_DISK_GIB)
        return cls(
            max_silent_seconds=int(_number(environ, "DLMESH_TRAINING_MAX_SILENT_SECONDS", DEFAULT_MAX_SILENT_SECONDS)),
            max_disk_bytes=int(disk_gib * 2**30),
            worker_environment={name: environ[name] for name in WORKER_VARIABLES if name in environ},
        )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: {text!r} is not valid; allowed: a number of at least 0")
    return value
