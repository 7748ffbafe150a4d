"""What this service reads from the environment for exec tasks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from servicekit.settings import SettingError

DEFAULT_MAX_UPLOAD_GIB = 20
DEFAULT_MAX_DISK_GIB = 100
DEFAULT_STOP_GRACE_SECONDS = 8


@dataclass(frozen=True)
class ExecLimits:
    """Limits of exec tasks.

    DLMESH_EXEC_MAX_UPLOAD_GIB       most that an upload may hold, and what is unpacked of it; default 20
    DLMESH_EXEC_MAX_DISK_GIB         how much one task may write; default 100, 0: no limit
    DLMESH_EXEC_STOP_GRACE_SECONDS   what programs have for a last checkpoint when they are to end; default 8
    """

    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_GIB << 30
    max_disk_bytes: int = DEFAULT_MAX_DISK_GIB << 30
    stop_grace_seconds: float = DEFAULT_STOP_GRACE_SECONDS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ExecLimits:
        """ValueError names the variable."""
        return cls(
            max_upload_bytes=int(_number(environ, "DLMESH_EXEC_MAX_UPLOAD_GIB", DEFAULT_MAX_UPLOAD_GIB) * 2**30),
            max_disk_bytes=int(_number(environ, "DLMESH_EXEC_MAX_DISK_GIB", DEFAULT_MAX_DISK_GIB) * 2**30),
            stop_grace_seconds=_number(environ, "DLMESH_EXEC_STOP_GRACE_SECONDS", DEFAULT_STOP_GRACE_SECONDS),
        )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a number from 0")
    return value
