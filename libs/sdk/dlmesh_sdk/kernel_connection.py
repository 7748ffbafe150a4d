"""How a kernel talks to the platform that hosts it: frames on a socket that it is started with.

A frame is the length of its header in bytes (4, big-endian), the header, which is JSON, and the texts (UTF-8) of those
of its tasks or answers that have `bytes`, one behind the other: nobody has to take apart what others wrote. The
platform says

    {"start": {"kernel", "instance", "description", "output_bytes"}}       once, first
    {"tasks": [{"key", "id", "uuid", "session", "job", "extension", "bytes"}, ...]}, with their inputs
    {"shutdown": true}

and the kernel `{"ready": true}`, `{"answers": [{"key", "bytes"} or {"key", "error"}, ...]}` with outputs in any number
of frames, `{"done": true}` after each batch of tasks, `{"failed": text}` when it cannot start or go on. Its headers
have at most HEADER_BYTES. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTOR_VARIABLE = "DLMESH_KERNEL_SOCKET"
# Answers are sent before more of them is there, but for one that is larger.
FRAME_BYTES = 1024 * 1024
HEADER_BYTES = 64 * 1024
MAX_WORDS = 2000


class KernelConnection:
    """The kernel's end."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._file = self._socket.makefile("rb")

    def receive(self) -> dict[str, Any] | None:
        """The next frame; None when the platform has gone."""
        try:
            header = self._file.read(4)
            text = self._file.read(int.from_bytes(header, "big")) if len(header) == 4 else b""
        except ConnectionError:
            return None
        message: dict[str, Any] | None = json.loads(text) if text else None
        for task in message.get("tasks", ()) if message else ():
            data = self._file.read(task["bytes"])
            if len(data) < task["bytes"]:
                return None
            task["input"] = data.decode()
        return message

    def send(self, message: dict[str, Any]) -> None:
        """Send a frame; that the platform has gone is seen by the next `receive`."""
        self.send_frame(json.dumps(message).encode())

    def send_frame(self, header: bytes, texts: Sequence[bytes] = ()) -> None:
        """The same of what is JSON already, with what it has beside it."""
        try:
            self._socket.sendall(b"".join([len(header).to_bytes(4, "big"), header, *texts]))
        except ConnectionError:
            return


_open: list[KernelConnection] = []


def connection() -> KernelConnection | None:
    """Of this process; None when no platform has started it."""
    if not _open:
        # Whatever the kernel starts is no kernel.
        descriptor = os.environ.pop(DESCRIPTOR_VARIABLE, "")
        if not descriptor.isdigit():
            return None
        _open.append(KernelConnection(int(descriptor)))
    return _open[0]


def words_of(error: BaseException, files: Sequence[str] = ()) -> str:
    """An error for people, with the last line of `files`, else of any file, that it came through."""
    name = type(error).__name__
    text = f"{name}: {error}" if str(error) else name
    if isinstance(error, MemoryError):
        text = "MemoryError: it needs more memory than it may have"
    if isinstance(error, SyntaxError):
        return text[:MAX_WORDS]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not files or frame.filename.startswith(tuple(files)):
            place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
            return f"{text[:MAX_WORDS]} ({place})"
    return text[:MAX_WORDS]
