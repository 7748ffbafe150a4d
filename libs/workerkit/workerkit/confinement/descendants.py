"""What a process started, and what that started in turn. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found, frontier = [], [pid]
    while frontier:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{frontier.pop()}/task").iterdir():
                with contextlib.suppress(OSError):
                    children = [int(word) for word in (thread / "children").read_text().split()]
                    found += children
                    frontier += children
    return found


def end_tree(pid: int) -> None:
    """Kill a process and what it started, also what it starts meanwhile: nobody goes on once all have been seen."""
    known: set[int] = set()
    while new := {pid, *below(pid)} - known:
        _signal(new, signal.SIGSTOP)
        known |= new
    _signal(known, signal.SIGKILL)


def end_all() -> None:
    """Kill until there is nobody. For a subreaper: whose parent was killed has become our child."""
    while True:
        _signal(below(os.getpid()), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
