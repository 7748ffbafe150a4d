"""A sign of life of this rank, which the platform's watchdog looks for.

Only the program's own steps call it, never a thread beside them: a program that hangs must fall silent.
"""

from __future__ import annotations

import contextlib
import os
import time

BEAT_SECONDS = 1.0

_next_beat = 0.0


def heartbeat() -> None:
    """This rank is getting on; call it every step, it costs a look at the clock. Does nothing outside of a job."""
    global _next_beat
    now = time.monotonic()
    if now < _next_beat:
        return
    _next_beat = now + BEAT_SECONDS
    directory = os.environ.get("DLMESH_JOB_DIR")
    if not directory:
        return
    path = os.path.join(directory, f"heartbeat-{os.environ.get('RANK', '0')}")  # noqa: PTH118  a Path costs more
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def heartbeat_of_the_only_rank() -> None:
    """As `heartbeat`, where there are no other ranks: for what reads data, and knows no steps.

    A rank among others that has had one heartbeat must go on having them, and may read all its data before it begins.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        heartbeat()
