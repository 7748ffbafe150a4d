"""Files as streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

BLOCK_BYTES = 256 * 1024


async def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> AsyncIterator[bytes]:
    """The content of `path` in pieces, read beside the event loop; one empty piece for an empty file."""
    with await asyncio.to_thread(path.open, "rb") as file:
        block = await asyncio.to_thread(file.read, block_bytes)
        yield block
        while block := await asyncio.to_thread(file.read, block_bytes):
            yield block
