"""Delete exec tasks: hidden at once, stopped and removed by the loop."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.identity import current_identity

from scheduling_service.usecases.exec_ports import Execs
from scheduling_service.usecases.find_exec import FindExec


class DeleteExec:
    """Callable with the id of a task."""

    def __init__(self, execs: Execs, find: FindExec, wake: Callable[[], None]) -> None:
        self._execs, self._find, self._wake = execs, find, wake

    async def __call__(self, task_id: str) -> None:
        await self._find(task_id)
        await self._execs.hide(task_id)
        self._wake()


class DeleteAllExecs:
    """Callable: all tasks that the caller started, an administrator's too; how many there were."""

    def __init__(self, execs: Execs, wake: Callable[[], None]) -> None:
        self._execs, self._wake = execs, wake

    async def __call__(self) -> int:
        number = await self._execs.hide_all(current_identity().user)
        self._wake()
        return number
