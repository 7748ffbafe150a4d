"""One kernel's process, behind its guard: started, told, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from inference_service.kernels.engine.nursery import Nursery
from inference_service.kernels.engine.output import KernelOutput

START_SECONDS = 60.0
# A kernel that speaks no more has ended, or is ended after that.
LAST_SECONDS = 1.0
# From the order to end it at once until it is forgotten that it has not.
MAX_ENDING_SECONDS = 20.0
MAX_CONTROL_BYTES = 1024 * 1024
# To take apart JSON of hostile programs holds everybody up.
MAX_HEADER_BYTES = 128 * 1024


class CannotStartError(Exception):
    """The text says why; `is_final` when it will be no better the next time."""

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class JunkError(Exception):
    """What came is no answer of a kernel."""


class KernelProcess:
    """One kernel. `pid` is its process, `ending` why it was told to end at once."""

    def __init__(
        self, control: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: socket.socket, output: KernelOutput
    ) -> None:
        self._control, self._orders = control
        self._socket, self._output = data, output
        self._answers: asyncio.StreamReader | None = None
        self._tasks: asyncio.StreamWriter | None = None
        self._most_bytes = 0
        self.pid = self._guard = 0
        self.ending = ""
        self._why = "its guard was ended"
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, nursery: Nursery, spec: Mapping[str, Any], output: KernelOutput, most_bytes: int
    ) -> KernelProcess:
        """A kernel that runs, of which nothing was heard yet; outputs in a frame of it may have `most_bytes`.

        CannotStartError; OSError when the machine has no room for it at the moment.
        """
        control, control_there = socket.socketpair()
        data, data_there = socket.socketpair()
        printed, printed_there = os.pipe()
        there = [control_there.detach(), data_there.detach(), printed_there]
        try:
            await output.read(printed)
            await nursery.fork(there)
        except BaseException:
            control.close()
            data.close()
            raise
        finally:
            for descriptor in there:
                os.close(descriptor)
        control.setblocking(False)
        data.setblocking(False)
        process = cls(await asyncio.open_unix_connection(sock=control, limit=MAX_CONTROL_BYTES), data, output)
        try:
            await process._open(spec, most_bytes)
        except BaseException:
            await process.end()
            raise
        return process

    async def _open(self, spec: Mapping[str, Any], most_bytes: int) -> None:
        self._answers, self._tasks = await asyncio.open_unix_connection(sock=self._socket)
        self._most_bytes = most_bytes
        self._orders.write(json.dumps(spec).encode() + b"\n")
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await self._hear()
        except TimeoutError:
            raise ConnectionError(f"its guard did nothing for {START_SECONDS:g} s") from None
        if message is None:
            raise ConnectionError("the process that starts kernels has ended")
        if "cannot_start" in message:
            text = str(message["cannot_start"])
            raise OSError(text) if message["is_transient"] else CannotStartError(text, is_final=True)
        self.pid, self._guard = int(message["pid"]), int(message["guard"])
        self._watching = asyncio.create_task(self._watch(self._answers))

    def send(self, message: Mapping[str, Any], texts: Sequence[bytes] = ()) -> None:
        """Tell it; that it has ended is seen by the next `receive`."""
        assert self._tasks is not None
        header = json.dumps(message).encode()
        if not self._tasks.is_closing():
            self._tasks.writelines([len(header).to_bytes(4, "big"), header, *texts])

    async def receive(self) -> dict[str, Any] | None:
        """What it says next, outputs in their answers; None when it has ended. JunkError."""
        assert self._answers is not None
        try:
            length = int.from_bytes(await self._answers.readexactly(4), "big")
            if length > MAX_HEADER_BYTES:
                raise JunkError(f"it sent a frame of {length} bytes; allowed are {MAX_HEADER_BYTES}")
            message = _object(await self._answers.readexactly(length))
            await self._take_outputs(message.get("answers"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    async def _take_outputs(self, answers: Any) -> None:
        assert self._answers is not None
        left = self._most_bytes
        for answer in answers if isinstance(answers, list) else ():
            if not isinstance(answer, dict) or "bytes" not in answer:
                continue
            size = answer["bytes"]
            if type(size) is not int or not 0 <= size <= left:
                raise JunkError(f"it sent outputs of {size} bytes; allowed are {self._most_bytes} in a frame")
            left -= size
            try:
                answer["output"] = (await self._answers.readexactly(size)).decode()
            except UnicodeDecodeError:
                raise JunkError("it sent an output that is no UTF-8") from None

    def kill(self, why: str) -> None:
        """Have its guard end all of it at once."""
        self.ending = self.ending or why
        with contextlib.suppress(OSError, RuntimeError):
            self._orders.write_eof()

    async def end(self) -> str:
        """Wait until all of it has gone; why it went."""
        if self._watching is None:
            # It was not begun; closing its line ends what there may be of it.
            self._watching = asyncio.create_task(self._watch(None))
            self.kill("it was not begun")
        if self.ending or not await self._has_gone(LAST_SECONDS):
            self.kill("it closed its connection and did not end")
            if not await self._has_gone(MAX_ENDING_SECONDS):
                # Until the end of `control` it is there. The kernel dies with it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._guard, signal.SIGKILL)
                await self._has_gone(MAX_ENDING_SECONDS)
        await self._output.close()
        self._watching.cancel()
        for writer in (self._orders, self._tasks):
            if writer is not None:
                writer.close()
        return self.ending or self._why

    @property
    def said(self) -> str:
        """What it printed last."""
        return self._output.said

    async def _watch(self, answers: asyncio.StreamReader | None) -> None:
        """Until its guard has gone, and all of it with it."""
        while (message := await self._hear()) is not None:
            if "ended" in message:
                self._why = str(message["ended"]) or _ended(int(message["code"]))
        if answers is not None:
            # By then its last words are read. Somebody who got away from a guard that was killed may hold its end open.
            asyncio.get_running_loop().call_later(LAST_SECONDS, answers.feed_eof)

    async def _has_gone(self, seconds: float) -> bool:
        assert self._watching is not None
        await asyncio.wait({self._watching}, timeout=seconds)
        return self._watching.done()

    async def _hear(self) -> dict[str, Any] | None:
        try:
            line = await self._control.readline()
        except (ConnectionError, ValueError):
            return None
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message


def _object(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise JunkError("it sent something that is no JSON") from None
    if not isinstance(message, dict):
        raise JunkError("it sent something that is no object")
    return message


def _ended(code: int) -> str:
    if code >= 0:
        return f"it ended itself with exit code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
