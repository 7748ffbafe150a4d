"""One exec task, as its caller may see it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from servicekit.errors import ServiceError, invalid
from servicekit.identity import current_identity

from scheduling_service.domain.exec_task import ExecView
from scheduling_service.usecases.exec_ports import Execs

PAGE = 500


class FindExec:
    """Callable with the id of a task: 400 when there is none, as the reference says, 403 when it is another user's."""

    def __init__(self, execs: Execs) -> None:
        self._execs = execs

    async def __call__(self, task_id: str) -> ExecView:
        found = await self._execs.find(task_id)
        if found is None:
            raise unknown_exec(task_id)
        current_identity().require_access("exec task", task_id, found.owner)
        return found


class ListExecs:
    """Callable: all tasks that the caller may see, newest first."""

    def __init__(self, execs: Execs) -> None:
        self._execs = execs

    async def __call__(self) -> AsyncIterator[ExecView]:
        identity = current_identity()
        owner = None if identity.is_admin else identity.user
        last: ExecView | None = None
        while page := await self._execs.visible(owner, last, PAGE):
            for view in page:
                yield view
            last = page[-1]


def unknown_exec(task_id: str) -> ServiceError:
    """400: there is no such task."""
    return invalid("execId", task_id, "the id of a task that exists; GET /execs lists them", reason="UNKNOWN_EXEC")
