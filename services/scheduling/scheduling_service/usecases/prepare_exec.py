"""Prepare an exec task: read its command line, unpack its upload, freeze how it is run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from servicekit.errors import ServiceError, invalid, renamed
from servicekit.jobs import MAX_PRIORITY, MAX_SECONDS
from servicekit.paths import DataRoots
from servicekit.threads import in_thread

from scheduling_service.domain.exec_arguments import ExecArguments, parse
from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.domain.exec_task import ExecTask
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Spec
from scheduling_service.usecases.exec_ports import ExecDescription, ExecFolders, ExecFramework, ExecFrameworks, Upload
from scheduling_service.usecases.ports import Groups, Jobs
from scheduling_service.usecases.submit_job import MAX_DEPENDENCIES

MOST_UNPACKED_AT_ONCE = 2
PARENT_RESULTS = "DLMESH_PARENT_RESULT_DIR"
# What the queue says of a job, and what its submitter knows it as.
_FIELDS = {"clusterSize": "numWorker", "min_ranks": "numWorker", "sigid": "sigName"}


@dataclass(frozen=True)
class TrialParts:
    """What a trial has beside its command line and upload; see TrialSpec in trials.proto."""

    study: str = ""
    config_json: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    parent_task_id: str = ""


@dataclass(frozen=True)
class ExecRequest:
    """The query of a start; empty texts and 0 mean that a parameter was not given. `trial` makes it one of a study."""

    instance_group: str
    arguments: str
    priority: int = 0
    after: Sequence[str] = ()
    max_seconds: float = 0.0
    trial: TrialParts | None = None


@dataclass(frozen=True)
class ExecSettings:
    """What holds for every task; `restarts` is how often the program of an elastic one may fail."""

    data_roots: Sequence[Path]
    grace_seconds: float = 10.0
    max_disk_bytes: int = 0
    restarts: int = 2


@dataclass(frozen=True)
class Checked:
    """A request that makes sense."""

    request: ExecRequest
    owner: str
    arguments: ExecArguments
    framework: ExecFramework
    group: InstanceGroup
    data: Path


@dataclass(frozen=True)
class Prepared:
    """A task that lacks nothing but its name: the draft of its folder, and what goes into it and into the tables."""

    draft: Path
    task: ExecTask
    spec: ExecSpec


class PrepareExec:
    """Two steps: `check` needs no upload, the call has it unpacked. 400 for what can never run."""

    def __init__(
        self,
        folders: ExecFolders,
        frameworks: ExecFrameworks,
        groups: Groups,
        jobs: Jobs,
        settings: ExecSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._folders, self._frameworks, self._groups, self._jobs = folders, frameworks, groups, jobs
        self._settings, self._now = settings, now
        self._data_roots = DataRoots(settings.data_roots)
        # It takes a thread for as long, and others need some.
        self._unpacking = asyncio.Semaphore(MOST_UNPACKED_AT_ONCE)

    async def check(self, request: ExecRequest, owner: str) -> Checked:
        """What can be said before the upload is there."""
        request = replace(request, after=list(dict.fromkeys(request.after)))
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
        await self._check_dependencies(request.after, owner)
        return Checked(request, owner, arguments, framework, group, data)

    async def __call__(self, task_id: str, checked: Checked, upload: Upload) -> Prepared:
        """The task in a draft of its own, which is there, or a part of it, also when this fails."""
        arguments, trial = checked.arguments, checked.request.trial
        draft = await in_thread(self._folders.open_draft, task_id)
        saved = await upload.save(draft / "upload")
        if saved is None and not arguments.command:
            raise invalid("file", "", "a part with the program, or a tar of its folder")
        async with self._unpacking:
            await in_thread(self._folders.unpack, draft, saved, arguments)
        directory, program = await in_thread(self._folders.find_program, draft, arguments)
        if trial is not None and trial.config_json:
            await in_thread(self._folders.write_config, draft / directory, trial.config_json)
        parent = trial.parent_task_id if trial is not None else ""
        if trial is not None and parent and await in_thread(self._folders.copy_results, parent, draft):
            environment = {**trial.environment, PARENT_RESULTS: self._folders.parent_results(task_id)}
            request = replace(checked.request, trial=replace(trial, environment=environment))
            checked = replace(checked, request=request)
        spec, job_spec = await in_thread(self._freeze, task_id, directory, program, checked)
        task = ExecTask(
            id=task_id,
            owner=checked.owner,
            group_id=checked.group.id,
            arguments=arguments.shown,
            spec=job_spec,
            created_at=self._now(),
            is_trial=trial is not None,
        )
        return Prepared(draft, task, spec)

    async def _check_dependencies(self, after: Sequence[str], owner: str) -> None:
        if len(after) > MAX_DEPENDENCIES:
            raise invalid("after", f"{len(after)} ids", f"at most {MAX_DEPENDENCIES}")
        found = {job.id: job for job in await self._jobs.find(after)} if after else {}
        for job_id in after:
            if job_id not in found or found[job_id].spec.owner != owner:
                raise invalid("after", job_id, "ids of tasks of yours, separated by commas")

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

    def _freeze(self, task_id: str, directory: str, program: str, checked: Checked) -> tuple[ExecSpec, Spec]:
        arguments, framework = checked.arguments, checked.framework
        folder = self._folders.folder(task_id)
        code = str(folder / directory)
        described = ExecDescription(task_id, checked.owner, code, program, str(checked.data))
        plan = framework.plan(arguments, checked.group, described)
        command = list(plan.command or arguments.command)
        is_elastic = 0 < plan.min_ranks < plan.ranks
        trial = checked.request.trial or TrialParts()
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
            environment={**plan.environment, **arguments.environment, **trial.environment},
            datastore=arguments.datastore,
            log_level=arguments.log_level,
            parameter_servers=plan.parameter_servers,
            devices_per_worker=max(1, arguments.gpus_per_worker),
            max_workers=plan.ranks if is_elastic else 0,
            warnings=list(arguments.warnings),
        )
        return spec, self._job(folder, checked, plan, spec, is_elastic=is_elastic)

    def _job(self, folder: Path, checked: Checked, plan: ExecPlan, spec: ExecSpec, *, is_elastic: bool) -> Spec:
        arguments, request = checked.arguments, checked.request
        return Spec(
            name=Path(spec.program or spec.command[0]).name,
            kind="exec" if request.trial is None else "trial",
            owner=checked.owner,
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
            study=request.trial.study if request.trial else "",
        )


def as_submitter_knows(error: ServiceError) -> ServiceError:
    """What the queue refuses about a job, by the names that whoever started the task knows."""
    field = error.metadata.get("field", "")
    return renamed(error, _FIELDS.get(field, field))
