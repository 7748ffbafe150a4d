"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from scheduling_service.domain.job import InstanceGroup, Job, Reported, UserShare


class SortKey(StrEnum):
    """What a list may be sorted by, in the spelling of the REST reference."""

    ID = "applicationid"
    NAME = "applicationname"
    STATE = "state"
    OWNER = "username"
    SUBMITTED = "submittedtime"
    ENDED = "endtime"
    SLOTS = "slots"
    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True)
class Query:
    """Which jobs, in which order, which page; None and empty match everything, `search` looks into name, id, model."""

    owner: str | None = None
    ids: Sequence[str] = ()
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

    async def active(self) -> Sequence[Job]:
        """Those without a final state, oldest first."""

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

    async def search(self, query: Query) -> tuple[Sequence[Job], int]:
        """The page that `query` asks for, and how many jobs match without the page."""

    async def lead(self, holder: str, seconds: float, now: datetime) -> bool:
        """Take or keep the lease of the loop; False when another machine has it."""


class Groups(Protocol):
    """The instance groups and what users may have of them."""

    async def get(self, name_or_id: str) -> InstanceGroup:
        """The default group for an empty text; 400 listing the known when unknown."""

    async def find(self, name_or_id: str) -> InstanceGroup:
        """As `get`, but 404 when unknown, also for an empty text."""

    async def all(self) -> Sequence[InstanceGroup]:
        """Every group, by name."""

    async def add(self, group: InstanceGroup) -> None:
        """409 when the name is taken."""

    async def save(self, group: InstanceGroup, *, moved: bool) -> None:
        """409 when it `moved` to another engine or master while jobs of it have not ended."""

    async def remove(self, group: InstanceGroup) -> None:
        """409 while jobs of it have not ended, and for the default group."""

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

    async def observe(self, job: Job, group: InstanceGroup) -> Any:
        """An `engines.base.Observation`-like record: phase (its name), reason, ranks, failed_rank."""

    async def stop(self, job: Job, group: InstanceGroup) -> None:
        """Ask the newest attempt to end."""

    async def describe(self, job: Job, group: InstanceGroup) -> Any:
        """An `engines.base.AttemptFacts`-like record of the newest attempt: driver and executors."""


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

    def remove(self, job_id: str) -> None:
        """Remove everything of the job."""
