"""Which cores a rank is tied to where control groups cannot limit it. Standard library only: the keeper uses it.

A core that a gang has to itself is a locked file, so that it is free again when the keeper ends, however it ends.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path


class Cores:
    """The cores of one gang, each rank's own as far as there are free ones; held until `release` or our end."""

    def __init__(self, folder: Path, ranks: int, cores_per_rank: float, allowed: Collection[int]) -> None:
        self._locks: list[int] = []
        each = max(1, math.ceil(cores_per_rank))
        if each >= len(allowed):
            self.of_ranks: Sequence[frozenset[int]] = [frozenset(allowed)] * ranks
            return
        folder.mkdir(parents=True, exist_ok=True)
        own = [core for core in sorted(allowed) if len(self._locks) < each * ranks and self._take(folder / str(core))]
        # Too few are free: the rest are shared with others, beginning with those that are not ours.
        others = [core for core in sorted(allowed) if core not in own] + own
        chosen = own + [others[index % len(others)] for index in range(each * ranks - len(own))]
        self.of_ranks = [frozenset(chosen[rank * each : (rank + 1) * each]) for rank in range(ranks)]

    def release(self) -> None:
        """Give them back; in a fork it only closes the fork's files."""
        while self._locks:
            os.close(self._locks.pop())

    def _take(self, path: Path) -> bool:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._locks.append(lock)
        return True
