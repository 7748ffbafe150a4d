"""A log, piece by piece, as it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO

from servicekit.errors import invalid
from servicekit.files import BLOCK_BYTES, tail


async def log_pieces(file: BinaryIO, tail_lines: int) -> AsyncIterator[bytes]:
    """All of `file`, which is closed at the end, or its last lines as far as they lie in its last 16 MiB; 0 is all."""
    with file:
        if tail_lines < 0:
            raise invalid("tailLines", tail_lines, "0 or more")
        if tail_lines:
            yield b"".join(await asyncio.to_thread(tail, file, tail_lines))
            return
        while data := await asyncio.to_thread(file.read, BLOCK_BYTES):
            yield data
