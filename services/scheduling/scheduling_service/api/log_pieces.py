"""A log, piece by piece, as it is sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from servicekit.errors import invalid

CHUNK_BYTES = 256 * 1024
MAX_TAIL_BYTES = 16 * 1024 * 1024


async def log_pieces(file: BinaryIO, tail_lines: int) -> AsyncIterator[bytes]:
    """All of `file`, which is closed at the end, or its last lines as far as they lie in its last 16 MiB; 0 is all."""
    with file:
        if tail_lines < 0:
            raise invalid("tailLines", tail_lines, "0 or more")
        if tail_lines:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
            tail = await asyncio.to_thread(lambda: file.read().splitlines(keepends=True)[-tail_lines:])
            yield b"".join(tail)
            return
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data
