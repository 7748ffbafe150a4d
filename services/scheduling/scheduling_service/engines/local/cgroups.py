"""Limits of ranks by control groups (cgroup v2), where we may make them. Standard library only: the keeper uses it.

A group of ours lies below one that was delegated to us: `dlmesh-JOB-ATTEMPT/rank-R`. Where there is none the keeper
watches memory by itself and ties ranks to cores.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

CONTROLLERS = ("memory", "cpu")
MOUNTS, OWN = Path("/proc/self/mounts"), Path("/proc/self/cgroup")
PERIOD_MICROSECONDS = 100_000
REMOVE_SECONDS = 2.0


def find_base(mounts: Path = MOUNTS, own: Path = OWN) -> Path | None:
    """The group in which we may make groups with limits of memory and cores; None when there is no such group.

    That is our own or the one above it: a group that hands controllers down must not hold processes itself, so
    systemd's `Delegate=yes` with `DelegateSubgroup=` puts us one below.
    """
    root = next((fields[1] for fields in _words(mounts) if len(fields) > 2 and fields[2] == "cgroup2"), None)
    path = next((fields[0][3:] for fields in _words(own) if fields and fields[0].startswith("0::")), None)
    if root is None or path is None:
        return None
    top = Path(root)
    mine = top / path.lstrip("/")
    for base in (mine, mine.parent) if mine != top and _is_delegated(mine.parent) else (mine,):
        with contextlib.suppress(OSError):
            _hand_down(base)
            return base
    return None


def make(base: Path, name: str, ranks: int, memory_bytes: int, cores: float) -> Path:
    """A group `name` with one group a rank in it; a limit of 0 is none. OSError when it cannot be made."""
    group = base / name
    group.mkdir(exist_ok=True)
    _hand_down(group)
    for rank in range(ranks):
        of_rank = of(group, rank)
        of_rank.mkdir(exist_ok=True)
        if memory_bytes:
            (of_rank / "memory.max").write_text(str(memory_bytes))
            # What does not fit is not put on the disk, and all of the rank ends when it does not fit.
            with contextlib.suppress(FileNotFoundError):
                (of_rank / "memory.swap.max").write_text("0")
            (of_rank / "memory.oom.group").write_text("1")
        if cores:
            (of_rank / "cpu.max").write_text(f"{max(1000, int(cores * PERIOD_MICROSECONDS))} {PERIOD_MICROSECONDS}")
    return group


def of(group: Path, rank: int) -> Path:
    """The group of a rank."""
    return group / f"rank-{rank}"


def enter(of_rank: Path) -> None:
    """Put this process, and with it all that it starts, into the group."""
    (of_rank / "cgroup.procs").write_text("0")


def ran_out_of_memory(of_rank: Path) -> bool:
    """Whether the kernel ended processes of the group because they passed its limit."""
    try:
        events = dict(line.split() for line in (of_rank / "memory.events").read_text().splitlines())
    except (OSError, ValueError):
        return False
    return int(events.get("oom_kill", "0")) > 0


def remove(group: Path) -> bool:
    """End what is left in the group and remove it; False when it cannot be removed yet. Nothing when it is gone."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while group.is_dir():
        with contextlib.suppress(OSError):
            # Never made here: only the kernel makes it.
            descriptor = os.open(group / "cgroup.kill", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "w") as file:
                file.write("1")
        with contextlib.suppress(OSError):
            for of_rank in group.glob("rank-*"):
                _remove_directory(of_rank)
            _remove_directory(group)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _remove_directory(group: Path) -> None:
    # The kernel's own files in it go with it.
    group.rmdir()


def _is_delegated(group: Path) -> bool:
    """Root may write everywhere, and must not where systemd rules."""
    if os.geteuid() != 0:
        return os.access(group, os.W_OK)
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _hand_down(group: Path) -> None:
    """Let the groups below have limits; OSError when we may not."""
    known = (group / "cgroup.controllers").read_text().split()
    if missing := [name for name in CONTROLLERS if name not in known]:
        raise OSError(f"{group} has no {', '.join(missing)}")
    control = group / "cgroup.subtree_control"
    if any(name not in control.read_text().split() for name in CONTROLLERS):
        control.write_text(" ".join(f"+{name}" for name in CONTROLLERS))
    # Processes are moved in by writing here, and groups are made here.
    (group / "cgroup.procs").open("a").close()
    probe = group / f"dlmesh-probe-{time.monotonic_ns()}"
    probe.mkdir()
    _remove_directory(probe)


def _words(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
