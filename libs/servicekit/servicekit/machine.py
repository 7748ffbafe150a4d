"""What there is to share out: defaults of limits are parts of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int:
    """Of the machine, or of the container where that has less."""
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        # "max" where there is no limit.
        return min(of_machine, int(CONTAINER_LIMIT.read_text()))
    return of_machine
