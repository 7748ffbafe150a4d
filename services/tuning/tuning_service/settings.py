"""What this service reads from the environment besides the common settings."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from servicekit.settings import SettingError

DEFAULT_MAX_UPLOAD_MIB = 512
DEFAULT_PLUGIN_SECONDS = 300
DEFAULT_ORPHAN_GRACE_SECONDS = 3600


@dataclass(frozen=True)
class TuningSettings:
    """Limits of searches, above 0 but for the last, which may be 0.

    DLMESH_TUNING_MAX_UPLOAD_MIB   the largest program or plug-in that is taken; default 512
    DLMESH_TUNING_PLUGIN_SECONDS   how long a plug-in may think about what to try next; default 300
    DLMESH_ORPHAN_GRACE_SECONDS    how long ended tunings of a model that has gone are kept; default 3600
    """

    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_MIB << 20
    plugin_seconds: float = DEFAULT_PLUGIN_SECONDS
    orphan_grace_seconds: float = DEFAULT_ORPHAN_GRACE_SECONDS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> TuningSettings:
        """SettingError names the variable."""
        return cls(
            max_upload_bytes=math.ceil(
                2**20 * _number(environ, "DLMESH_TUNING_MAX_UPLOAD_MIB", DEFAULT_MAX_UPLOAD_MIB)
            ),
            plugin_seconds=_number(environ, "DLMESH_TUNING_PLUGIN_SECONDS", DEFAULT_PLUGIN_SECONDS),
            orphan_grace_seconds=_number(
                environ, "DLMESH_ORPHAN_GRACE_SECONDS", DEFAULT_ORPHAN_GRACE_SECONDS, may_be_0=True
            ),
        )


def _number(environ: Mapping[str, str], name: str, default: float, *, may_be_0: bool = False) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 < value < 2**40 or (may_be_0 and value == 0)):
        allowed = "a number of at least 0" if may_be_0 else "a number above 0"
        raise SettingError(f"{name}: {text!r} is not valid; allowed: {allowed}")
    return value
