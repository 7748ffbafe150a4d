"""Whether a Triton that runs still answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from inference_service.triton.installation import HOST

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 5.0
# Five seconds each: a busy machine is slow, one that hangs is silent.
MAX_SILENCES = 4
REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Liveness:
    """Asks in the background; `hangs` after so many unanswered questions in a row.

    One that never answered is starting and hangs for nobody; one that does not even listen is not asked.
    """

    def __init__(
        self,
        look_seconds: float = LOOK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_seconds, self._patience_seconds, self._clock = look_seconds, patience_seconds, clock
        self._was_live = False
        self._silences = 0
        self._next_at = 0.0
        self._question: asyncio.Task[bool | None] | None = None

    @property
    def hangs(self) -> bool:
        """Whether it should be killed."""
        return self._silences >= MAX_SILENCES

    def look(self, port: int) -> None:
        """Take the answer to the last question, and ask the next when it is time; returns at once."""
        if self._question is not None:
            if not self._question.done():
                return
            answer, self._question = self._question.result(), None
            self._was_live = self._was_live or answer is True
            if answer is False and self._was_live:
                self._silences += 1
            else:
                self._silences = 0
        if self._clock() >= self._next_at:
            self._next_at = self._clock() + self._look_seconds
            self._question = asyncio.create_task(is_live(port, self._patience_seconds))

    async def close(self) -> None:
        """Ask no more."""
        if self._question is not None:
            self._question.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._question
            self._question = None


async def is_live(port: int, patience_seconds: float) -> bool | None:
    """None when nobody listens; False when there is no answer in time."""
    writer = None
    try:
        async with asyncio.timeout(patience_seconds):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(REQUEST)
            await writer.drain()
            return bool(await reader.read(1)) or None
    except TimeoutError:
        return False
    except OSError:
        return None
    finally:
        if writer is not None:
            writer.close()
