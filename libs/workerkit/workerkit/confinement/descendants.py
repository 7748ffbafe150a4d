"""What a process started, and what that started in turn. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
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


def end_all() -> None:
    """Kill until there is nobody. For a subreaper: whose parent was killed has become our child."""
    while True:
        for pid in below(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
