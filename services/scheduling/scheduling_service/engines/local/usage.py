"""What processes take of this machine, from /proc. Standard library only: the keeper uses it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process; `resident_bytes` counts shared pages in full, `cpu_seconds` its ended children with it."""

    pid: int
    parent: int
    group: int
    start_time: int
    own_cpu_seconds: float
    cpu_seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Snapshot:
    """All processes of one moment; zombies are left out."""

    processes: Mapping[int, Process]
    children: Mapping[int, tuple[int, ...]]

    def tree(self, root: int) -> set[int]:
        """`root` with all below it; empty when it has gone."""
        found = {root} & self.processes.keys()
        frontier = list(found)
        while frontier:
            frontier = [child for parent in frontier for child in self.children.get(parent, ()) if child not in found]
            found.update(frontier)
        return found

    def cpu_seconds(self, pids: Iterable[int]) -> float:
        """Processor time that `pids` have used since they were started."""
        return sum(self.processes[pid].cpu_seconds for pid in pids)

    def resident_bytes(self, pids: Iterable[int]) -> int:
        """At least what `pids` take: pages that they share count once for each."""
        return sum(self.processes[pid].resident_bytes for pid in pids)


def snapshot() -> Snapshot:
    """The processes that there are now."""
    processes: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  Paths would double what a look costs
        if name.isdigit() and (process := _process(int(name))):
            processes[process.pid] = process
            children.setdefault(process.parent, []).append(process.pid)
    return Snapshot(processes, {parent: tuple(pids) for parent, pids in children.items()})


def memory_bytes(pids: Iterable[int], snapshot: Snapshot) -> int:
    """What `pids` take together: of a page shared by n processes each has the n-th part, also with those not in `pids`.

    Forks of the warm pool share what it has imported, so that the sum of what is resident would count it many times.
    """
    return sum(_proportional_bytes(pid, snapshot.processes[pid].resident_bytes) for pid in pids)


def _proportional_bytes(pid: int, otherwise: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return otherwise


def _process(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything, so split behind its end: state, ppid, pgrp, ...
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        start_time=int(fields[19]),
        own_cpu_seconds=sum(map(int, fields[11:13])) / TICKS_A_SECOND,
        cpu_seconds=sum(map(int, fields[11:15])) / TICKS_A_SECOND,
        resident_bytes=int(fields[21]) * PAGE_BYTES,
    )
