"""Files as streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 256 * 1024
# The last lines are looked for in so much of a file.
MAX_TAIL_BYTES = 16 * 1024 * 1024


async def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
    """The content of `path` in pieces, read beside the event loop; one empty piece for an empty file."""
    with await asyncio.to_thread(path.open, "rb") as file:
        block = await asyncio.to_thread(file.read, block_bytes)
        yield block
        while block := await asyncio.to_thread(file.read, block_bytes):
            yield block


def tail(file: BinaryIO, lines: int) -> list[bytes]:
    """The last `lines`, at least one, of a file, with their ends, as far as they lie in its last 16 MiB. Blocking."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
    return file.read(MAX_TAIL_BYTES).splitlines(keepends=True)[-lines:]
