"""Ask an exec task to end."""

from __future__ import annotations

from servicekit.errors import Code, ServiceError

from scheduling_service.usecases.exec_ports import Execs, Submit
from scheduling_service.usecases.find_exec import FindExec
from scheduling_service.usecases.stop_job import StopJob


class StopExec:
    """Callable with the id of a task; what has ended stays as it is."""

    def __init__(self, execs: Execs, find: FindExec, submit: Submit, stop: StopJob) -> None:
        self._execs, self._find, self._submit, self._stop = execs, find, submit, stop

    async def __call__(self, task_id: str) -> None:
        await self._find(task_id)
        try:
            await self._stop(task_id)
        except ServiceError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            await self._end_unsubmitted(task_id)

    async def _end_unsubmitted(self, task_id: str) -> None:
        """Its submission was cut off, or is on its way: whoever submits it again finds a job that was stopped."""
        task = await self._execs.task(task_id)
        if task is None:
            # Deleted in this moment.
            return
        try:
            await self._submit(task.id, task.spec, task.group_id)
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            # It can never run.
            await self._execs.hide(task_id)
            return
        await self._stop(task_id)
