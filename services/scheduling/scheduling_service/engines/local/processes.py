"""Processes of this machine through /proc and prctl. Standard library only: the keeper and the warm pool use it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Be sent `number` when the parent ends, also when it is killed; ends at once when it has gone already."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def boot_id() -> str:
    """Differs after every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which `pid` started; None when there is no such process or only its zombie.

    With the boot id it tells a process from a later one that got the same pid.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def descendants(pid: int) -> list[int]:
    """All children of children of `pid`, without it, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, ())]
        found += frontier
    return found


def left_behind(session: int, mark: str) -> list[int]:
    """Processes of ours with `mark` (NAME=value) in their environment, or of `session` with any mark of the platform.

    The latter are forks of the warm pool, which show its environment; without a look at that a later session that got
    the same number would be taken for ours.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes().split(b"\0")
            ours = any(line.startswith(b"DLMESH_") for line in environment)
            if mark.encode() in environment or (ours and os.getsid(int(entry.name)) == session):
                found.append(int(entry.name))
    return found


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal each; those that have gone are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end(pids: Iterable[int], patience_seconds: float) -> None:
    """Kill each and wait until they have gone, though not for ever: the kernel may hold one up."""
    started = {pid: start_time(pid) for pid in pids}
    send_signal(started, signal.SIGKILL)
    deadline = time.monotonic() + patience_seconds
    while any(start is not None and start_time(pid) == start for pid, start in started.items()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in parentheses and may hold anything, so split behind its end: state, ppid, ...
    return text[text.rindex(")") + 2 :].split()
