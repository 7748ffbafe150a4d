"""What the use cases of exec tasks need from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from workerkit.trial_results import TrialResults

from scheduling_service.domain.exec_arguments import ExecArguments
from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.domain.exec_task import ExecTask, ExecView
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Spec


class Execs(Protocol):
    """The table of exec tasks. Each call is one transaction; what was hidden is found by `hidden` only."""

    async def add(self, task: ExecTask) -> None:
        """Store a new task; 404 with the reason DELETED when it is a trial whose id was deleted."""

    async def find(self, task_id: str) -> ExecView | None:
        """The task as it stands."""

    async def visible(self, owner: str | None, after: ExecView | None, length: int) -> Sequence[ExecView]:
        """The next tasks behind `after`, of `owner` or of everybody, newest first; without trials."""

    async def hide(self, task_id: str) -> None:
        """From now on nobody sees it."""

    async def hide_all(self, owner: str) -> int:
        """The same for all tasks of `owner` but trials; how many there were."""

    async def trials(self, task_ids: Sequence[str]) -> set[str]:
        """Which of them are trials, and not hidden."""

    async def was_deleted(self, task_id: str) -> bool:
        """Whether the trial is hidden, or its id was deleted."""

    async def delete_trials(self, task_ids: Sequence[str], now: datetime) -> None:
        """Hide those that are trials; those that are unknown can no longer be added."""

    async def forget_deleted(self, before: datetime) -> None:
        """Ids of trials that were deleted before then may be used again."""

    async def hidden(self) -> Sequence[str]:
        """Ids of those that wait to be removed."""

    async def task(self, task_id: str) -> ExecTask | None:
        """The task as it was asked for."""

    async def without_job(self) -> Sequence[ExecTask]:
        """Those whose submission was cut off."""

    async def known(self, task_ids: Sequence[str]) -> set[str]:
        """Which of them there are, hidden or not."""

    async def remove(self, task_id: str) -> None:
        """Remove the row."""


@dataclass(frozen=True)
class UploadedFile:
    """The file of an upload: where it was put, and what its sender calls it, a name without folders or empty."""

    path: Path
    name: str


class Upload(Protocol):
    """The body of a request while it arrives."""

    async def save(self, folder: Path) -> UploadedFile | None:
        """Receive it all below `folder`; None when there is no body. 400 when there is no file in it."""

    async def discard(self) -> None:
        """Receive it all for nothing: a client that is still sending would not hear the answer."""


class StoredUploads(Protocol):
    """Uploads that other services keep on the disk."""

    def at(self, path: str, name: str) -> Upload:
        """The file at `path`, relative to the platform's home, called `name` by its sender; none for an empty path.
        400 unless it lies where studies keep theirs."""


class TrialFiles(Protocol):
    """What programs of trials wrote."""

    def results(self, task_id: str) -> TrialResults:
        """As it is now; nothing where there is no plain file. Blocking."""


class ExecFolders(Protocol):
    """The folders of tasks below `$DLMESH_HOME/execs`. Blocking; OSError for a disk in trouble."""

    def open_draft(self, task_id: str) -> Path:
        """Make the folder that a task is prepared in."""

    def unpack(self, draft: Path, upload: UploadedFile | None, arguments: ExecArguments) -> None:
        """Make the folder `code` of the draft; 400 naming what is refused."""

    def find_program(self, draft: Path, arguments: ExecArguments) -> tuple[str, str]:
        """The working directory, relative to the draft, and the file in it to run (empty with a command); 400."""

    def write_config(self, folder: Path, text: str) -> None:
        """Write config.json into `folder` of a draft, over whatever is there; durable when the draft is published."""

    def copy_results(self, task_id: str, draft: Path) -> bool:
        """Put what a task left as its results beside the program of `draft`; False when that is gone, or is
        nothing that could be copied."""

    def parent_results(self, task_id: str) -> str:
        """Where the task finds what was put there, once it is published."""

    def folder(self, task_id: str) -> Path:
        """Where the task lies once it is published."""

    def publish(self, draft: Path, task_id: str, spec: ExecSpec) -> None:
        """Give the draft its name, with `spec` in it; durable when this returns."""

    def discard(self, task_id: str) -> None:
        """Remove the task's draft; nothing when it was published."""

    def remove(self, task_id: str) -> None:
        """Remove the task's folder; nothing when it is gone."""

    def orphans(self) -> Sequence[str]:
        """Names of folders that are old enough to be nobody's unless there is a row; drafts too, by their name."""


class ExecFramework(Protocol):
    """As `exec_frameworks.base.ExecFramework`."""

    name: str
    backend: str
    description: str
    examples: Sequence[str]
    distribute_strategy: str
    parameter_servers: int

    @property
    def version(self) -> str:
        """Of the library; empty when there is none."""

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        """How to run it; 400 when the framework cannot. Blocking."""


@dataclass(frozen=True)
class ExecDescription:
    """What a framework knows of a task beside its arguments: working directory, program in it, and data."""

    id: str
    owner: str
    directory: str
    program: str
    data: str


class ExecFrameworks(Protocol):
    """The frameworks, built in and installed."""

    def get(self, name: str) -> ExecFramework:
        """By name in any case; 400 that lists the known. Blocking."""

    def all(self) -> Sequence[ExecFramework]:
        """The built-in ones, then the installed, by name. Blocking."""

    def install(self, source: Path) -> ExecFramework:
        """Copy a plug-in from the folder `source`; 400 saying what it lacks. Blocking."""

    def remove(self, name: str) -> None:
        """Remove a plug-in; 404 when none of that name is installed. Blocking."""


class Submit(Protocol):
    """The use case SubmitJob."""

    def __call__(self, job_id: str, spec: Spec, instance_group: str) -> Awaitable[Job]: ...


class ExecLogs(Protocol):
    """Outputs of a task's ranks and the log files of its program."""

    def output(self, job: Job, stream: str, rank: int, tail_lines: int) -> AsyncIterator[bytes]:
        """What the rank wrote in all attempts, or the last lines of it; `stream` is out or err."""

    def follow(
        self, job: Job, stream: str, rank: int, tail_lines: int, look: Callable[[], Awaitable[Job | None]]
    ) -> AsyncIterator[bytes]:
        """As `output`, and what comes, until the job that `look` finds has ended; an empty chunk in a long silence."""

    def metrics(self, task_id: str, job: Job | None, tail_lines: int) -> AsyncIterator[bytes]:
        """The lines of the program's own metrics log, else the metric lines that its first rank printed."""


class ExecResults(Protocol):
    """The zip files of what tasks left."""

    def pack(self, task_id: str, *, is_elastic: bool) -> Path:
        """The zip of an ended task; made by the first call. Blocking."""

    def remove(self, task_id: str) -> None:
        """Remove it; nothing when there is none. Blocking."""

    def orphans(self) -> Sequence[str]:
        """Ids of tasks that have one, or a part of one, which is old enough to be nobody's unless there is a row.
        Blocking."""
