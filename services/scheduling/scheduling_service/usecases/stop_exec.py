"""Ask an exec task to end."""

from __future__ import annotations

from servicekit.errors import Code, ServiceError

from scheduling_service.usecases.find_exec import FindExec
from scheduling_service.usecases.stop_job import StopJob


class StopExec:
    """Callable with the id of a task; what has ended stays as it is."""

    def __init__(self, find: FindExec, stop: StopJob) -> None:
        self._find, self._stop = find, stop

    async def __call__(self, task_id: str) -> None:
        await self._find(task_id)
        try:
            await self._stop(task_id)
        except ServiceError as error:
            # Deleted in this moment, or its submission was cut off and the loop is about to repeat it.
            if error.code is not Code.NOT_FOUND:
                raise
