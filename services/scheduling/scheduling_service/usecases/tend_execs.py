"""One pass over exec tasks: submit those whose submission was cut off, remove those that were deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next
from servicekit.times import utc_now
from servicekit.trials import DELETED_FOR

from scheduling_service.domain.exec_task import ExecTask
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.exec_ports import ExecFolders, ExecResults, Execs, Submit
from scheduling_service.usecases.start_exec import InFlight
from scheduling_service.usecases.stop_job import StopJob

log = logging.getLogger(__name__)

# Folders without rows are what a kill left: seldom, and nobody waits for their end.
ORPHANS_EVERY_SECONDS = 600.0


class TendExecs:
    """Safe to be killed anywhere and to repeat.

    Cut-off submissions are looked for when the process begins and after one of its own went wrong.
    """

    def __init__(
        self,
        execs: Execs,
        folders: ExecFolders,
        results: ExecResults,
        submit: Submit,
        stop: StopJob,
        delete: DeleteJob,
        in_flight: InFlight,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._execs, self._folders, self._results = execs, folders, results
        self._submit, self._stop, self._delete = submit, stop, delete
        self._in_flight, self._clock, self._now = in_flight, clock, now
        self._is_complete = False
        self._orphans_at = -ORPHANS_EVERY_SECONDS

    def look_again(self) -> None:
        """There may be a row without a job."""
        self._is_complete = False

    async def step(self) -> Next:
        if not self._is_complete:
            await self._complete()
        if self._clock() - self._orphans_at >= ORPHANS_EVERY_SECONDS:
            await self._remove_orphans()
            await self._execs.forget_deleted(self._now() - DELETED_FOR)
            self._orphans_at = self._clock()
        left = [await self._removed(task_id) for task_id in await self._execs.hidden()]
        return Next.LATER if all(left) and self._is_complete else Next.SOON

    async def _complete(self) -> None:
        # Before it is looked: what goes wrong meanwhile says so again.
        self._is_complete = True
        try:
            for task in await self._execs.without_job():
                if task.id in self._in_flight.ids:
                    self._is_complete = False
                else:
                    await self._repeat(task)
        except BaseException:
            self._is_complete = False
            raise

    async def _repeat(self, task: ExecTask) -> None:
        try:
            await self._submit(task.id, task.spec, task.group_id)
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            # It was accepted by nobody: the client heard of a failure, or nothing.
            log.warning("exec task %s cannot be submitted: %s", task.id, error.message)
            await self._execs.hide(task.id)

    async def _removed(self, task_id: str) -> bool:
        """False while it is being started, or has to be stopped first."""
        if task_id in self._in_flight.ids:
            # Its job comes in this moment, and would be left without task and files.
            return False
        try:
            await self._delete(task_id)
            await asyncio.to_thread(self._folders.remove, task_id)
            await asyncio.to_thread(self._results.remove, task_id)
            await self._execs.remove(task_id)
        except ServiceError as error:
            if error.code is not Code.ABORTED:
                raise
            await self._stop(task_id)
            return False
        except OSError:
            log.exception("exec task %s cannot be removed yet", task_id)
            return False
        return True

    async def _remove_orphans(self) -> None:
        for names_of, remove in (
            (self._folders.orphans, self._folders.remove),
            (self._results.orphans, self._results.remove),
        ):
            names = await asyncio.to_thread(names_of)
            known = await self._execs.known(names)
            for name in names:
                if name in known or name.removeprefix(".draft-") in self._in_flight.ids:
                    continue
                try:
                    await asyncio.to_thread(remove, name)
                except OSError:
                    log.exception("%s cannot be removed yet", name)
