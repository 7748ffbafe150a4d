"""What programs hold of memory. Standard library only."""

from __future__ import annotations

import resource
from collections.abc import Collection
from pathlib import Path


def held_bytes(pids: Collection[int], limit: int) -> int:
    """What the processes hold in memory.

    Pages that several share count in part, which takes long to find out: what would not exceed `limit` even if they
    counted for each of them is told as if they did.
    """
    held = sum(map(_resident_bytes, pids))
    return held if held <= limit else sum(map(_proportional_bytes, pids))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _resident_bytes(pid)
