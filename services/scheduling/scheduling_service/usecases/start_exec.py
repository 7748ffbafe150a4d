"""Start an exec task: read its command line, unpack its upload, freeze how it is run, queue the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from servicekit.errors import Code, ServiceError, invalid, renamed
from servicekit.identity import current_identity
from servicekit.jobs import MAX_PRIORITY, MAX_SECONDS
from servicekit.paths import DataRoots

from scheduling_service.domain.exec_arguments import ExecArguments, parse
from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.domain.exec_task import ExecTask, ExecView
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Spec
from scheduling_service.usecases.exec_ports import (
    ExecDescription,
    ExecFolders,
    ExecFramework,
    ExecFrameworks,
    Execs,
    Submit,
    Upload,
)
from scheduling_service.usecases.ports import Groups, Jobs
from scheduling_service.usecases.submit_job import MAX_DEPENDENCIES

Made = TypeVar("Made")

MOST_UNPACKED_AT_ONCE = 2
# What the queue says of a job, and what its submitter knows it as.
_FIELDS = {"clusterSize": "numWorker", "min_ranks": "numWorker", "sigid": "sigName"}


@dataclass(frozen=True)
class ExecRequest:
    """The query of a start; empty texts and 0 mean that a parameter was not given."""

    instance_group: str
    arguments: str
    priority: int = 0
    after: Sequence[str] = ()
    max_seconds: float = 0.0


@dataclass(frozen=True)
class ExecSettings:
    """What holds for every task; `restarts` is how often the program of an elastic one may fail."""

    data_roots: Sequence[Path]
    grace_seconds: float = 10.0
    max_disk_bytes: int = 0
    restarts: int = 2


@dataclass
class InFlight:
    """Ids of tasks that are being started in this process: the loop leaves them alone."""

    ids: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Checked:
    arguments: ExecArguments
    framework: ExecFramework
    group: InstanceGroup
    data: Path


class StartExec:
    """Callable with a request and its upload; the stored task. 400 for what can never run: then nothing is kept."""

    def __init__(
        self,
        execs: Execs,
        folders: ExecFolders,
        frameworks: ExecFrameworks,
        groups: Groups,
        jobs: Jobs,
        submit: Submit,
        in_flight: InFlight,
        settings: ExecSettings,
        now: Callable[[], datetime],
        wake: Callable[[], None],
    ) -> None:
        self._execs, self._folders, self._frameworks = execs, folders, frameworks
        self._groups, self._jobs, self._submit = groups, jobs, submit
        self._in_flight, self._settings, self._now, self._wake = in_flight, settings, now, wake
        self._data_roots = DataRoots(settings.data_roots)
        # It takes a thread for as long, and others need some.
        self._unpacking = asyncio.Semaphore(MOST_UNPACKED_AT_ONCE)

    async def __call__(self, request: ExecRequest, upload: Upload) -> ExecView:
        request = replace(request, after=list(dict.fromkeys(request.after)))
        try:
            checked = await self._check(request)
        except ServiceError:
            await upload.discard()
            raise
        task_id = uuid4().hex
        self._in_flight.ids.add(task_id)
        try:
            draft = await _in_thread(self._folders.open_draft, task_id)
            saved = await upload.save(draft / "upload")
            if saved is None and not checked.arguments.command:
                raise invalid("file", "", "a part with the program, or a tar of its folder")
            async with self._unpacking:
                await _in_thread(self._folders.unpack, draft, saved, checked.arguments)
            spec, job_spec = await _in_thread(self._freeze, task_id, draft, request, checked)
            task = ExecTask(task_id, job_spec.owner, checked.group.id, checked.arguments.shown, job_spec, self._now())
        except BaseException:
            await asyncio.shield(self._discard(task_id))
            raise
        # A client that goes away now has a task all the same, or none: nothing in between.
        return await asyncio.shield(self._publish(draft, task, spec))

    async def _publish(self, draft: Path, task: ExecTask, spec: ExecSpec) -> ExecView:
        try:
            return await self._commit(draft, task, spec)
        finally:
            await self._discard(task.id)

    async def _discard(self, task_id: str) -> None:
        try:
            # A draft that was published has another name.
            await asyncio.to_thread(self._folders.discard, task_id)
        finally:
            self._in_flight.ids.discard(task_id)

    async def _check(self, request: ExecRequest) -> _Checked:
        arguments = parse(request.arguments)
        framework = await asyncio.to_thread(self._frameworks.get, arguments.framework)
        group = await self._group(request, arguments)
        data = self._settings.data_roots[0]
        if arguments.data_path:
            data = await asyncio.to_thread(
                self._data_roots.resolve, "--cs-datastore-meta data_path", arguments.data_path
            )
            if not data.is_dir():
                raise invalid("--cs-datastore-meta data_path", arguments.data_path, "a folder")
        # What the queue says, too: before the upload is received.
        if not 0 <= request.max_seconds <= MAX_SECONDS:
            raise invalid("maxSeconds", request.max_seconds, f"0 to {MAX_SECONDS}; 0 is unlimited")
        if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
            raise invalid("priority", request.priority, f"{-MAX_PRIORITY} to {MAX_PRIORITY}")
        if len(request.after) > MAX_DEPENDENCIES:
            raise invalid("after", f"{len(request.after)} ids", f"at most {MAX_DEPENDENCIES}")
        owner = current_identity().user
        found = {job.id: job for job in await self._jobs.find(request.after)} if request.after else {}
        for job_id in request.after:
            if job_id not in found or found[job_id].spec.owner != owner:
                raise invalid("after", job_id, "ids of tasks of yours, separated by commas")
        return _Checked(arguments, framework, group, data)

    async def _group(self, request: ExecRequest, arguments: ExecArguments) -> InstanceGroup:
        try:
            group = await self._groups.get(request.instance_group or arguments.instance_group)
        except ServiceError as error:
            raise renamed(error, "sigName" if request.instance_group else "--ig") from error
        if arguments.instance_group not in ("", group.id, group.name):
            try:
                await self._groups.get(arguments.instance_group)
            except ServiceError as error:
                raise renamed(error, "--ig") from error
            raise invalid("--ig", arguments.instance_group, f"{group.name}, which is what sigName says")
        return group

    def _freeze(self, task_id: str, draft: Path, request: ExecRequest, checked: _Checked) -> tuple[ExecSpec, Spec]:
        arguments, framework = checked.arguments, checked.framework
        owner = current_identity().user
        directory, program = self._folders.find_program(draft, arguments)
        folder = self._folders.folder(task_id)
        code = str(folder / directory)
        described = ExecDescription(task_id, owner, code, program, str(checked.data))
        plan = framework.plan(arguments, checked.group, described)
        command = list(plan.command or arguments.command)
        is_elastic = 0 < plan.min_ranks < plan.ranks
        warnings = list(arguments.warnings)
        spec = ExecSpec(
            id=task_id,
            framework=framework.name,
            backend=framework.backend,
            folder=str(folder),
            code=code,
            data=str(checked.data),
            data_root=str(self._settings.data_roots[0]),
            program=program,
            arguments=list(arguments.program_arguments),
            command=command,
            environment={**plan.environment, **arguments.environment},
            datastore=arguments.datastore,
            log_level=arguments.log_level,
            parameter_servers=plan.parameter_servers,
            devices_per_worker=max(1, arguments.gpus_per_worker),
            max_workers=plan.ranks if is_elastic else 0,
            warnings=warnings,
        )
        return spec, self._job(folder, request, arguments, plan, spec, owner, is_elastic=is_elastic)

    def _job(
        self,
        folder: Path,
        request: ExecRequest,
        arguments: ExecArguments,
        plan: ExecPlan,
        spec: ExecSpec,
        owner: str,
        *,
        is_elastic: bool,
    ) -> Spec:
        return Spec(
            name=Path(spec.program or spec.command[0]).name,
            kind="exec",
            owner=owner,
            ranks=plan.ranks,
            min_ranks=plan.min_ranks if is_elastic else 0,
            command=["python", "-m", "scheduling_service.worker.run_exec", str(folder / "spec.json")],
            gpus_per_rank=arguments.gpus_per_worker,
            working_directory=str(folder),
            max_restarts=self._settings.restarts if is_elastic else plan.max_restarts,
            grace_seconds=self._settings.grace_seconds,
            warm=plan.warm,
            framework=spec.framework,
            max_seconds=request.max_seconds,
            application_name=arguments.application_name,
            max_disk_bytes=self._settings.max_disk_bytes,
            priority=request.priority,
            after=list(request.after),
            memory_bytes_per_rank=arguments.memory_bytes,
            cores_per_rank=arguments.cores,
        )

    async def _commit(self, draft: Path, task: ExecTask, spec: ExecSpec) -> ExecView:
        await asyncio.to_thread(self._folders.publish, draft, task.id, spec)
        try:
            await self._execs.add(task)
            await self._submit(task.id, task.spec, task.group_id)
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                self._wake()
                raise
            # In this order: a folder without a row is removed by the loop, a row without a folder would be a task.
            await self._execs.remove(task.id)
            await asyncio.to_thread(self._folders.remove, task.id)
            field = error.metadata.get("field", "")
            raise renamed(error, _FIELDS.get(field, field)) from error
        except BaseException:
            self._wake()
            raise
        view = await self._execs.find(task.id)
        # Deleted in this moment.
        return view or ExecView(
            task.id, task.owner, task.group_id, "", "", "", task.arguments, task.created_at, state="KILLED"
        )


async def _in_thread(call: Callable[..., Made], *arguments: object) -> Made:
    """As `asyncio.to_thread`, but over when the thread is, also for a client that went away: its draft is removed then,
    and nothing may write there any more."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.gather(work, return_exceptions=True)
        raise
