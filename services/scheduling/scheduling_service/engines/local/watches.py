"""What a keeper looks at while its ranks run: signs of life and the room on the disk. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

if __package__:
    from workerkit.confinement import sizes

    from scheduling_service.engines.local import usage
else:  # with a keeper that is run as a file
    import sizes  # type: ignore[import-not-found,no-redef]
    import usage  # type: ignore[import-not-found,no-redef]

DISK_SECONDS = 2.0
MEMORY_SECONDS = 0.25
# A look takes at most this part of the time, however large the folders are.
DISK_SHARE = MEMORY_SHARE = 0.02
LEAST_FREE_BYTES, LEAST_FREE_PART = 200 * 1024 * 1024, 0.01


class Signs:
    """Since when each rank is silent: neither its heartbeat nor its output changed.

    A rank that has never had a heartbeat is as lively as the liveliest: of many programs only one rank says something.
    Times of files are compared with themselves only, so a clock that is set does not look like silence.
    """

    def __init__(self, directory: Path, ranks: int) -> None:
        self._directory = directory
        self._stamps: dict[int, tuple[int, ...]] = {}
        self._changed_at = dict.fromkeys(range(ranks), time.monotonic())

    def most_silent(self, ranks: Sequence[int]) -> tuple[int, float]:
        """The one of `ranks` that is silent longest, and for how many seconds."""
        now = time.monotonic()
        for rank in ranks:
            names = (f"heartbeat-{rank}", f"rank-{rank}.out", f"rank-{rank}.err")
            stamps = tuple(_changed(self._directory / name) for name in names)
            if stamps != self._stamps.get(rank):
                self._stamps[rank], self._changed_at[rank] = stamps, now
        liveliest = max(self._changed_at[rank] for rank in ranks)

        def heard_at(rank: int) -> float:
            has_heartbeat = self._stamps[rank][0] > 0
            return self._changed_at[rank] if has_heartbeat else liveliest

        silent = min(ranks, key=lambda rank: (heard_at(rank), self._changed_at[rank], rank))
        return silent, now - heard_at(silent)


class Disk:
    """What the folders hold together, looked at now and then; `most_bytes` 0 is unlimited."""

    def __init__(self, folders: Sequence[str | Path], most_bytes: int) -> None:
        paths = {Path(folder).resolve() for folder in folders}
        # One inside of another is counted with it.
        self._folders = sorted(path for path in paths if not paths & set(path.parents))
        self._most_bytes = most_bytes
        self._look_at = time.monotonic() + DISK_SECONDS
        self._warn_at = 0.0
        self._warned = False

    def look(self) -> str:
        """Why the run must end; empty while it need not, and between looks."""
        began = time.monotonic()
        if not self._most_bytes or began < self._look_at:
            return ""
        held = sizes.held_bytes(self._folders)
        took = time.monotonic() - began
        self._look_at = began + took + max(DISK_SECONDS, took / DISK_SHARE)
        if held <= self._most_bytes:
            return ""
        found, allowed = sizes.describe_bytes(held), sizes.describe_bytes(self._most_bytes)
        return f"the run's folder holds {found}, allowed are {allowed}"

    def warning(self) -> str:
        """Once, when the file system is nearly full."""
        now = time.monotonic()
        if self._warned or now < self._warn_at:
            return ""
        self._warn_at = now + 10 * DISK_SECONDS
        for folder in self._folders:
            try:
                system = os.statvfs(folder)
            except OSError:
                continue
            free, all_of_it = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
            if all_of_it and free < max(LEAST_FREE_BYTES, LEAST_FREE_PART * all_of_it):
                self._warned = True
                return f"the file system of {folder} is nearly full: {sizes.describe_bytes(free)} are free"
        return ""


class Memory:
    """What each rank takes with all that it started; `most_bytes` 0 is unlimited.

    What a program takes and gives back between two looks is not seen.
    """

    def __init__(self, most_bytes: int, keeper: int | None = None) -> None:
        """`keeper` is the process that ranks and their orphans are children of: this one."""
        self.most_bytes = most_bytes
        self._keeper = os.getpid() if keeper is None else keeper
        self._look_at = 0.0
        # Whose an orphan is can only be remembered: its parent is the keeper now.
        self._rank_of: dict[tuple[int, int], int] = {}

    def look(self, ranks: Mapping[int, int]) -> int | None:
        """The rank (of rank -> pid) that takes more than it may; None while there is none, and between looks."""
        began = time.monotonic()
        if not self.most_bytes or began < self._look_at:
            return None
        found = usage.snapshot()
        greedy = next(
            (rank for rank, pids in self._by_rank(ranks, found).items() if self._is_greedy(pids, found)), None
        )
        took = time.monotonic() - began
        self._look_at = began + took + max(MEMORY_SECONDS, took / MEMORY_SHARE)
        return greedy

    def _is_greedy(self, pids: set[int], found: usage.Snapshot) -> bool:
        # The dear look only when the cheap one, which counts too much, says that it may be so.
        return found.resident_bytes(pids) > self.most_bytes and usage.memory_bytes(pids, found) > self.most_bytes

    def _by_rank(self, ranks: Mapping[int, int], found: usage.Snapshot) -> dict[int, set[int]]:
        trees = {rank: found.tree(pid) for rank, pid in ranks.items()}
        rank_of_group = {pid: rank for rank, pid in ranks.items()}
        for orphan in found.children.get(self._keeper, ()):
            process = found.processes[orphan]
            rank = self._rank_of.get((orphan, process.start_time), rank_of_group.get(process.group))
            if rank is None and len(ranks) == 1:
                (rank,) = ranks
            if rank in trees:
                trees[rank] |= found.tree(orphan)
        self._rank_of = {(pid, found.processes[pid].start_time): rank for rank, pids in trees.items() for pid in pids}
        return trees


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
