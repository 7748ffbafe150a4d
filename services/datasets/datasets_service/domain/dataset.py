"""A dataset and how it comes to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from servicekit.errors import sendable
from servicekit.jobs import InstanceGroup as InstanceGroup
from servicekit.jobs import JobFacts as JobFacts

from datasets_service.domain.request import ImportOptions
from datasets_service.domain.words import Backend, SourceType

MAX_MESSAGE_CHARACTERS = 4000


class Status(StrEnum):
    """SUBMITTED and RUNNING follow the job, both ways (a job that is restarted waits again); the others are final."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        return self not in (Status.SUBMITTED, Status.RUNNING)


@dataclass(frozen=True)
class Split:
    """One split: where it lies, how many records it has, and how many of each label, in label order."""

    path: str
    count: int
    labels: Mapping[str, int]


@dataclass(frozen=True)
class ImportedRecords:
    """What an import published; `splits` by train, val and test."""

    content_hash: str
    size_bytes: int
    mean_file: str
    splits: Mapping[str, Split]
    unreadable_count: int = 0
    unreadable: tuple[str, ...] = ()


@dataclass
class Dataset:
    """One dataset. `accepted` says that the scheduling service has the job."""

    uid: str
    name: str
    owner: str
    created_at: datetime
    job_id: str
    group: InstanceGroup
    source_type: SourceType
    backend: Backend
    options: ImportOptions
    status: Status = Status.SUBMITTED
    status_message: str = ""
    accepted: bool = False
    stop_requested: bool = False
    driver_id: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    records: ImportedRecords | None = None

    def follow(self, job: JobFacts) -> None:
        """Take over what a job says that has not finished well; a final status never changes."""
        if self.status.is_final:
            return
        self.driver_id = job.driver_id or self.driver_id
        self.started_at = job.started_at or self.started_at
        match job.state:
            case "SUBMITTED":
                self.status, self.status_message = Status.SUBMITTED, job.reason
            case "RUNNING":
                self.status = Status.RUNNING
                self.status_message = self._progress(job) or job.reason
            case "KILLED":
                self._end(Status.STOPPED, job.reason or "stopped", job.ended_at)
            case "ERROR":
                reason = job.refusal or "\n".join(part for part in (job.reason, job.log_tail.strip()) if part)
                self._end(Status.FAILED, reason, job.ended_at)

    def finish(self, records: ImportedRecords, ended_at: datetime | None) -> None:
        """The import published its records."""
        if self.status.is_final:
            return
        self.records = records
        message = ""
        if records.unreadable_count:
            message = f"{records.unreadable_count} images could not be read: {', '.join(records.unreadable)}"
        self._end(Status.FINISHED, message, ended_at)

    def fail(self, message: str, ended_at: datetime | None) -> None:
        """It cannot be imported."""
        if not self.status.is_final:
            self._end(Status.FAILED, message, ended_at)

    def stopped_before_start(self, now: datetime) -> None:
        """It was stopped and its job never existed."""
        if not self.status.is_final:
            self._end(Status.STOPPED, "stopped before it started", now)

    def run_seconds(self, now: datetime) -> float:
        """Seconds from start to end, or until `now`."""
        if self.started_at is None:
            return 0.0
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())

    def _progress(self, job: JobFacts) -> str:
        if not job.total:
            return ""
        if self.source_type.name.startswith("IMAGES"):
            return f"imported {job.done:.0f} of {job.total:.0f} images"
        return f"imported {job.done / job.total:.0%}"

    def _end(self, status: Status, message: str, ended_at: datetime | None) -> None:
        if len(message) > MAX_MESSAGE_CHARACTERS:
            # What happened stands at the beginning, why in the last lines of the log.
            kept = MAX_MESSAGE_CHARACTERS // 2
            message = f"{message[:kept]}\n...\n{message[-kept:]}"
        self.status, self.status_message = status, sendable(message)
        self.ended_at = ended_at
