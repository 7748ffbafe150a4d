"""Passes over studies, side by side: a study that waits for a peer holds up no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from servicekit.reconcile import Next

from tuning_service.domain.study import Kind

log = logging.getLogger(__name__)

# Of each kind. Studies of one kind wait for the same peers, so those of the other are not to wait for them.
STUDIES_AT_ONCE = 8
# How long passes under way may take to come to their ends when the service does.
CLOSE_SECONDS = 3.0


class Passes:
    """Calls `look` with a study's uid, again and again while that changes something; never twice at a time for one
    study, and for STUDIES_AT_ONCE of each kind, which take turns. What goes wrong is logged; whoever asked asks again.
    """

    def __init__(self, look: Callable[[str], Awaitable[Next]]) -> None:
        self._look = look
        self._room = {kind: asyncio.Semaphore(STUDIES_AT_ONCE) for kind in Kind}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._is_closing = False

    @property
    def tasks(self) -> Mapping[str, asyncio.Task[None]]:
        """Those that are under way or wait for their turn, by study."""
        return self._tasks

    def begin(self, uid: str, kind: Kind) -> None:
        """Look at a study now. If that is under way, it is done once more: it may not have seen what happened since."""
        if uid in self._tasks:
            self._again.add(uid)
        elif not self._is_closing:
            self._tasks[uid] = asyncio.create_task(self._run(uid, kind), name=f"study {uid}")

    async def close(self) -> None:
        """Let what is under way come to its end, for a moment: cancelling it may cut off a transaction."""
        self._is_closing = True
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, uid: str, kind: Kind) -> None:
        is_due = True
        try:
            while is_due and not self._is_closing:
                async with self._room[kind]:
                    self._again.discard(uid)
                    outlook = await self._look(uid)
                is_due = outlook is Next.AT_ONCE or uid in self._again
        except Exception:
            log.exception("study %s: it could not be looked at", uid)
        finally:
            del self._tasks[uid]
