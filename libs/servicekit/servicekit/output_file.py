"""What others' code prints, in a file that does not grow for ever."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

MAX_BYTES = 1024 * 1024


class OutputFile:
    """The newest one to two MiB: `path`, and `path`.1 with what came before."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes

    async def write(self, chunk: bytes) -> None:
        """Add to it; OSError for a disk in trouble."""
        await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        # Whoever prints may have put something else there.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o644), "ab") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", str(self._path))
            file.write(chunk)
            is_full = file.tell() > self._max_bytes
        if is_full:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
