"""Trials: exec tasks that other services start, with ids of their own making, in the name of their users."""

from __future__ import annotations

import asyncio
import re
from uuid import uuid4

from servicekit.errors import ServiceError, invalid
from servicekit.single_flight import SingleFlight
from servicekit.trials import check_id, deleted_trial

from scheduling_service.domain.exec_task import ExecTask, ExecView
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.usecases.exec_ports import ExecFolders, Execs, Submit, Upload
from scheduling_service.usecases.prepare_exec import ExecRequest, PrepareExec, TrialParts, as_submitter_knows
from scheduling_service.usecases.start_exec import InFlight, StartExec
from scheduling_service.usecases.submit_job import MAX_TEXT_BYTES, SubmitJob

MAX_OWNER_CHARACTERS = 128
MAX_CONFIG_BYTES = 1024 * 1024
MAX_ENVIRONMENT_BYTES = 64 * 1024
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class CheckTrial:
    """Callable with an owner, a request and its upload; the group that such a trial would run in, 400 when it never
    could. Nothing is kept."""

    def __init__(self, folders: ExecFolders, prepare: PrepareExec, submit: SubmitJob, in_flight: InFlight) -> None:
        self._folders, self._prepare, self._submit, self._in_flight = folders, prepare, submit, in_flight

    async def __call__(self, owner: str, request: ExecRequest, upload: Upload) -> InstanceGroup:
        check_trial(owner, request)
        checked = await self._prepare.check(request, owner)
        task_id = uuid4().hex
        self._in_flight.ids.add(task_id)
        try:
            spec = (await self._prepare(task_id, checked, upload)).task.spec
        finally:
            await asyncio.shield(self._discard(task_id))
        try:
            await self._submit.check(task_id, spec, checked.group.id)
        except ServiceError as error:
            raise as_submitter_knows(error) from error
        return checked.group

    async def _discard(self, task_id: str) -> None:
        try:
            await asyncio.to_thread(self._folders.discard, task_id)
        finally:
            self._in_flight.ids.discard(task_id)


class StartTrial:
    """Callable with an id, an owner, a request and its upload; the trial, as it was asked for first.

    A call for an id that is being started in this process waits for that start. 404 with the reason DELETED when the
    trial was deleted.
    """

    def __init__(
        self, execs: Execs, folders: ExecFolders, start: StartExec, submit: Submit, in_flight: InFlight
    ) -> None:
        self._execs, self._folders, self._start, self._submit = execs, folders, start, submit
        self._in_flight = in_flight
        self._starting = SingleFlight[ExecView]("trial")

    async def __call__(self, task_id: str, owner: str, request: ExecRequest, upload: Upload) -> ExecView:
        check_id("task_id", task_id)
        check_trial(owner, request)
        return await self._starting(task_id, lambda: self._started(task_id, owner, request, upload))

    async def _started(self, task_id: str, owner: str, request: ExecRequest, upload: Upload) -> ExecView:
        # Before it is looked for: the loop removes nothing of it from here on.
        self._in_flight.ids.add(task_id)
        try:
            task = await self._execs.task(task_id)
            if task is not None:
                return await self._submit_again(task)
            if await self._execs.was_deleted(task_id):
                raise deleted_trial("task_id", task_id)
            # What a kill left of an earlier start.
            await asyncio.to_thread(self._folders.discard, task_id)
            await asyncio.to_thread(self._folders.remove, task_id)
            return await self._start.start(task_id, owner, request, upload)
        finally:
            self._in_flight.ids.discard(task_id)

    async def _submit_again(self, task: ExecTask) -> ExecView:
        """A kill may have come between its row and its job."""
        if not task.is_trial:
            raise invalid("task_id", task.id, "an id that is no exec task's")
        try:
            await self._submit(task.id, task.spec, task.group_id)
        except ServiceError as error:
            raise as_submitter_knows(error) from error
        view = await self._execs.find(task.id)
        if view is None:
            raise deleted_trial("task_id", task.id)
        return view


def check_trial(owner: str, request: ExecRequest) -> None:
    """400 for what only trials have."""
    if not owner.strip() or len(owner) > MAX_OWNER_CHARACTERS or "\0" in owner:
        raise invalid("owner", owner, f"the name of a user, 1 to {MAX_OWNER_CHARACTERS} characters")
    trial = request.trial or TrialParts()
    if trial.parent_task_id:
        check_id("parent_task_id", trial.parent_task_id)
    if len(trial.study.encode()) > MAX_TEXT_BYTES or "\0" in trial.study:
        raise invalid("study", trial.study, f"at most {MAX_TEXT_BYTES} bytes, none of them 0")
    if len(trial.config_json.encode()) > MAX_CONFIG_BYTES:
        raise invalid("config_json", trial.config_json, f"at most {MAX_CONFIG_BYTES} bytes")
    size = 0
    for name, value in trial.environment.items():
        size += len(name.encode()) + len(value.encode())
        if not _VARIABLE.fullmatch(name) or name.startswith("DLMESH_JOB_"):
            raise invalid("environment", name, "letters, digits and '_', not a name that begins with DLMESH_JOB_")
        if "\0" in value or size > MAX_ENVIRONMENT_BYTES:
            raise invalid(f"environment {name}", value, f"texts without NUL, {MAX_ENVIRONMENT_BYTES} bytes in all")
