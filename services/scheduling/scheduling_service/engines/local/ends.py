"""Learning of the end of keepers without looking again and again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable


class KeeperEnds:
    """Calls `tell` when a process that is watched ends. What tells keepers from others that got their pid is looked at
    elsewhere: this only says that a look is worthwhile."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None
        # The kernel says by them that a process ended, also one that is not our child.
        self._descriptors: dict[int, int] = {}

    def watch(self, pid: int) -> None:
        """Tell when the process ends, at once when it has already; nothing when we have no descriptor left."""
        if pid in self._descriptors:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            # Without one in this process, or in the kernel, attempts are looked at all the same.
            if error.errno in (errno.ESRCH, errno.EINVAL):
                self.tell()
            return
        self._descriptors[pid] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, pid)

    def close(self) -> None:
        """Watch nothing any more."""
        for pid in list(self._descriptors):
            self._forget(pid)

    def _ended(self, pid: int) -> None:
        self._forget(pid)
        self.tell()

    def _forget(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
