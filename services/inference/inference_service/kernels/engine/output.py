"""What kernels print: in a file that does not grow for ever, and the last lines for messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path

from servicekit.output_file import OutputFile

CHUNK_BYTES = 64 * 1024
# What is printed beyond so much a second is taken slowly: it costs its author time, and us little.
FREE_BYTES = 1024 * 1024
KEPT_LINES, LINE_CHARACTERS, SHOWN_CHARACTERS = 20, 500, 1000
LAST_WORDS_SECONDS = 2.0


class KernelOutput:
    """Of one kernel, read from a pipe. Kernels of a model share one file, where each line has its kernel's number."""

    def __init__(self, kernel: int, file: OutputFile) -> None:
        self._mark, self._file = f"{kernel}| ".encode(), file
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._torn = b""
        self._reading: asyncio.Task[None] | None = None
        self._transport: asyncio.ReadTransport | None = None

    async def read(self, descriptor: int) -> None:
        """Begin to; the descriptor is ours from now on."""
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        loop = asyncio.get_running_loop()
        file = open(descriptor, "rb", buffering=0)  # noqa: ASYNC230, SIM115  The transport closes it.
        self._transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        self._reading = asyncio.create_task(self._take(reader))

    @property
    def said(self) -> str:
        """The last lines."""
        lines = [*self._lines, self._torn[:LINE_CHARACTERS].decode(errors="replace").rstrip()]
        return "\n".join(filter(None, lines))[-SHOWN_CHARACTERS:]

    async def close(self) -> None:
        """Take what is still on its way."""
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=LAST_WORDS_SECONDS)
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        since, taken = loop.time(), 0
        while chunk := await reader.read(CHUNK_BYTES):
            *lines, torn = (self._torn + chunk).split(b"\n")
            if len(torn) > CHUNK_BYTES:
                lines, torn = [*lines, torn], b""
            self._torn = torn
            self._lines += [line[:LINE_CHARACTERS].decode(errors="replace").rstrip() for line in lines[-KEPT_LINES:]]
            with contextlib.suppress(OSError):
                await self._file.write(b"".join(self._mark + line + b"\n" for line in lines))
            taken += len(chunk)
            if taken > FREE_BYTES:
                await asyncio.sleep(max(0.0, since + 1.0 - loop.time()))
                since, taken = loop.time(), 0


def log_file(run_folder: Path) -> OutputFile:
    """Where a model's kernels print."""
    return OutputFile(run_folder / "kernel.log")
