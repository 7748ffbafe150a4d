"""Linux processes: children that do not outlive us, orphans that come to us, and the end of a whole tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """From now on every descendant whose parent ends becomes our child instead of init's."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def child_setup(parent: int) -> Callable[[], None]:
    """What a new child does before its program starts: take signals again, end when `parent` (our pid) ends."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def reap() -> dict[int, int]:
    """Exit codes (negative: signal) by pid of all children that ended, adopted ones included."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def marked(name: str, value: str) -> list[psutil.Process]:
    """Processes of ours whose environment says `name=value`, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def descendants() -> list[psutil.Process]:
    """All that we started, directly or not, and that still runs."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each that still exists (psutil guards against a reused pid)."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; zombies do not."""
    running = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def roots(found: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of `found` whose parent is not one of them."""
    everything = list(found)
    pids = {process.pid for process in everything}
    top = []
    for process in everything:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in pids:
                top.append(process)
    return top


def end_all(find: Callable[[], list[psutil.Process]], grace_seconds: float) -> None:
    """SIGTERM to the roots of what `find` sees (each ends its own), SIGKILL to all that is left after the grace."""
    send(roots(find()), signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while alive(find()) and time.monotonic() < deadline:
        reap()
        time.sleep(0.05)
    for _ in range(40):
        left = alive(find())
        if not left:
            return
        send(left, signal.SIGKILL)
        reap()
        time.sleep(0.05)
