"""Start an exec task: prepare it in a draft, give it its name, write its row, queue its job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from servicekit.errors import Code, ServiceError
from servicekit.identity import current_identity

from scheduling_service.domain.exec_task import ExecView
from scheduling_service.usecases.exec_ports import ExecFolders, Execs, Submit, Upload
from scheduling_service.usecases.prepare_exec import (
    ExecRequest,
    Prepared,
    PrepareExec,
    as_submitter_knows,
)


@dataclass
class InFlight:
    """Ids of tasks that are being started in this process: the loop leaves them alone."""

    ids: set[str] = field(default_factory=set)


class StartExec:
    """Callable with a request and its upload; the stored task. 400 for what can never run: then nothing is kept."""

    def __init__(
        self,
        execs: Execs,
        folders: ExecFolders,
        prepare: PrepareExec,
        submit: Submit,
        in_flight: InFlight,
        wake: Callable[[], None],
    ) -> None:
        self._execs, self._folders, self._prepare = execs, folders, prepare
        self._submit, self._in_flight, self._wake = submit, in_flight, wake

    async def __call__(self, request: ExecRequest, upload: Upload) -> ExecView:
        return await self.start(uuid4().hex, current_identity().user, request, upload)

    async def start(self, task_id: str, owner: str, request: ExecRequest, upload: Upload) -> ExecView:
        """As a call, for `owner` and with an id that no task has; 404 when a trial of that id was deleted."""
        try:
            checked = await self._prepare.check(request, owner)
        except ServiceError:
            await upload.discard()
            raise
        self._in_flight.ids.add(task_id)
        try:
            prepared = await self._prepare(task_id, checked, upload)
        except BaseException:
            await asyncio.shield(self._discard(task_id))
            raise
        # A client that goes away now has a task all the same, or none: nothing in between.
        return await asyncio.shield(self._publish(prepared))

    async def _publish(self, prepared: Prepared) -> ExecView:
        try:
            return await self._commit(prepared)
        finally:
            await self._discard(prepared.task.id)

    async def _discard(self, task_id: str) -> None:
        try:
            # A draft that was published has another name.
            await asyncio.to_thread(self._folders.discard, task_id)
        finally:
            self._in_flight.ids.discard(task_id)

    async def _commit(self, prepared: Prepared) -> ExecView:
        task = prepared.task
        await asyncio.to_thread(self._folders.publish, prepared.draft, task.id, prepared.spec)
        try:
            await self._execs.add(task)
            await self._submit(task.id, task.spec, task.group_id)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                # Deleted before it came; there is no row.
                await asyncio.to_thread(self._folders.remove, task.id)
                raise
            if error.code is not Code.INVALID_ARGUMENT:
                self._wake()
                raise
            # In this order: a folder without a row is removed by the loop, a row without a folder would be a task.
            await self._execs.remove(task.id)
            await asyncio.to_thread(self._folders.remove, task.id)
            raise as_submitter_knows(error) from error
        except BaseException:
            self._wake()
            raise
        view = await self._execs.find(task.id)
        # Deleted in this moment.
        return view or ExecView(
            task.id, task.owner, task.group_id, "", "", "", task.arguments, task.created_at, state="KILLED"
        )
