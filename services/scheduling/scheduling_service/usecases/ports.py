"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

from scheduling_service.domain.attempt_facts import AttemptFacts
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Job, Progress, Reported
from scheduling_service.domain.observation import Observation


class SortKey(StrEnum):
    """What a list may be sorted by: the fields of an application, in the spelling of the REST reference."""

    GROUP_ID = "sparkinstancegroupid"
    ID = "applicationid"
    NAME = "applicationname"
    TYPE = "type"
    STATE = "state"
    UI_PORT = "uiport"
    DRIVER = "driver"
    EXECUTORS = "executors"
    SLOTS = "slots"
    DEMANDED_SLOTS = "demandslots"
    HOSTS = "hosts"
    CORES_USED = "coresused"
    MEMORY_USED = "memused"
    OWNER = "username"
    DRIVER_USER = "driverexecutionuser"
    EXECUTOR_USER = "executorexecutionuser"
    UPDATED = "timestamp"
    SUBMITTED = "submittedtime"
    MASTER_URL = "masterUrl"
    ENDED = "endtime"
    SCHEDULE = "scheduleName"
    IS_SHARED = "issharedapp"
    DURATION = "apprunduration"
    MASTER_SEQUENCE = "masterSeqNo"
    MASTER_SERVICE = "masterService"
    MODEL = "model"
    DATASET = "dataset"
    FRAMEWORK = "dltype"
    TUNING = "tunningname"
    GROUP_NAME = "sigName"
    HISTORY_SERVER_URL = "historyServerUrl"
    # Beyond the reference.
    STATUS_MESSAGE = "statusMessage"
    PROGRESS = "progress"
    GPU_SLOTS = "gpuslots"
    GPU_MEMORY = "gpumemused.total"
    GPU_UTILIZATION = "gpudevutil.total"
    PRIORITY = "priority"


# What only running jobs have; of all others it is nothing or 0.
LIVE_KEYS = frozenset(
    {
        SortKey.UI_PORT,
        SortKey.HOSTS,
        SortKey.CORES_USED,
        SortKey.MEMORY_USED,
        SortKey.GPU_SLOTS,
        SortKey.GPU_MEMORY,
        SortKey.GPU_UTILIZATION,
    }
)


@dataclass(frozen=True)
class Query:
    """Which jobs, in which order, which page; None and empty match everything.

    `application_ids` are jobs' own ids or the engine's, `driver_id` is the engine's or `driver-ID`, `named` any of
    these; `search` looks into name, ids and model, in any case. `sort` is none of `LIVE_KEYS`.
    """

    owner: str | None = None
    application_ids: Sequence[str] = ()
    driver_id: str = ""
    named: str = ""
    name: str = ""
    search: str = ""
    states: Sequence[str] = ()
    group_id: str | None = None
    sort: SortKey = SortKey.SUBMITTED
    descending: bool = True
    start: int = 0
    length: int | None = None


class Jobs(Protocol):
    """The table of jobs. Each call is one transaction."""

    async def add(self, job: Job) -> Job:
        """Store it; the stored one when the id is known already."""

    async def find(self, job_ids: Collection[str]) -> Sequence[Job]:
        """Those that are known, oldest first."""

    async def active_of(self, job_ids: Sequence[str]) -> set[str]:
        """Which of them are known and have not ended."""

    async def active(self) -> Sequence[Job]:
        """Those without a final state, oldest first."""

    async def news(self, after_sequence: int) -> Sequence[Job]:
        """Of those without a final state: the ones that came later, and those that are to stop. Oldest first."""

    async def progress(self, job_ids: Collection[str]) -> Mapping[str, Progress]:
        """What workers reported last."""

    async def save_reasons(self, jobs: Collection[Job]) -> None:
        """Write why they wait, for those that still do."""

    async def save(self, job: Job) -> None:
        """Write what the loop decides: everything but the stop request and the worker's reports.

        409 when the job ended or has another attempt by now: a service that is being replaced may decide on old rows.
        """

    async def begin(self, job: Job) -> None:
        """As `save`, for a new attempt: result and warning that an earlier one reported are forgotten."""

    async def request_stop(self, job_id: str) -> None:
        """Write that a stop was asked for."""

    async def report(self, job_id: str, attempt: int, reported: Reported) -> None:
        """Write a worker's facts; those of another attempt than the newest are ignored."""

    async def delete(self, job_id: str) -> None:
        """Remove the row."""

    async def search(self, query: Query) -> Sequence[int]:
        """Sequence numbers of the page that `query` asks for, in order."""

    async def numbered(self, numbers: Sequence[int]) -> Sequence[Job]:
        """Jobs of these numbers, a few hundred at most, in their order; those that are gone are left out."""

    async def count(self, query: Query) -> int:
        """How many jobs match, the page left aside."""

    async def lead(self, holder: str, seconds: float, now: datetime) -> bool:
        """Take or keep the lease of the loop; False when another machine has it."""


class Groups(Protocol):
    """The instance groups and what users may have of them."""

    async def get(self, name_or_id: str) -> InstanceGroup:
        """The default group for an empty text; 400 listing the known when unknown."""

    async def find(self, name_or_id: str) -> InstanceGroup:
        """As `get`, but 404 when unknown, also for an empty text."""

    async def all(self, *, fresh: bool = False) -> Sequence[InstanceGroup]:
        """Every group, by name; what another process wrote a moment ago only when `fresh`."""

    async def add(self, group: InstanceGroup) -> None:
        """409 when the name is taken."""

    async def change(self, name_or_id: str, change: Callable[[InstanceGroup], InstanceGroup]) -> InstanceGroup:
        """Replace a group by what `change` makes of it, which may refuse; nobody else's change is lost. The new one.

        404 when unknown; 409 when it moves to another engine or master while jobs of it have not ended.
        """

    async def remove(self, group: InstanceGroup) -> None:
        """409 while jobs of it have not ended, and for the default group."""

    async def set_runs_next(self, group_id: str, name: str) -> None:
        """Note who is first among those that wait."""

    async def runs_next(self) -> Mapping[str, str]:
        """By group: the name of the job that runs next there, where one waits."""

    async def shares(self, group_id: str) -> Sequence[UserShare]:
        """Of the users that have one of their own."""

    async def set_share(self, group_id: str, share: UserShare) -> None:
        """Replaces the user's."""

    async def remove_share(self, group_id: str, user: str) -> None:
        """404 when the user has none of their own."""


class Runner(Protocol):
    """The engines, as the loop uses them; `group` is the job's."""

    async def launch(self, job: Job, group: InstanceGroup) -> None:
        """Start the newest attempt of the job; repeatable."""

    def due(self, running: Iterable[Job]) -> Iterable[Job]:
        """Those of which there may be news since they were observed last."""

    async def observe(self, job: Job, group: InstanceGroup) -> Observation:
        """The newest attempt as it stands."""

    async def stop(self, job: Job, group: InstanceGroup) -> None:
        """Ask the newest attempt to end."""

    async def describe(self, job: Job, group: InstanceGroup) -> AttemptFacts:
        """The processes of the newest attempt, also after it has ended."""


class Engines(Protocol):
    """What there is to run gangs on."""

    def names(self) -> Collection[str]:
        """Those that a group may have."""

    def version(self, engine: str) -> str:
        """For clients; empty when it cannot be known."""

    def check_group(self, group: InstanceGroup) -> None:
        """400 naming the field when no group of its engine may be so."""


class RunDirectories(Protocol):
    """The files of jobs."""

    def of(self, job_id: str) -> Path:
        """The job's directory."""

    def attempt(self, job: Job) -> Path:
        """The newest attempt's directory."""

    def report(self, job: Job) -> Reported:
        """What the worker of the newest attempt spooled."""

    def tail(self, job: Job, rank: int, lines: int) -> str:
        """The last lines of a rank's stderr, of its stdout when that is empty."""

    def open_output(self, job: Job, path: str) -> BinaryIO:
        """A plain file below the job's directory, for reading; OSError for anything else."""

    def remove(self, job_id: str) -> None:
        """Remove everything of the job."""
