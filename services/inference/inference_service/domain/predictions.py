"""Predictions: a life that a job of the scheduling service drives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from servicekit.jobs import InstanceGroup, JobFacts

RESERVED_NAMES = ("startpredict",)


class Status(StrEnum):
    """SUBMITTED -> RUNNING -> FINISHED | FAILED | STOPPED; the last three never change."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        """True when nothing can happen any more."""
        return self in (Status.FINISHED, Status.FAILED, Status.STOPPED)


@dataclass(frozen=True)
class Sample:
    """An uploaded image: `id` is what the client called it, `file` its name in the input folder."""

    id: str
    file: str


@dataclass(frozen=True)
class Score:
    """A label, its index and probability."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class SampleResult:
    """Scores of one sample, best first; `error` says why it could not be read as an image."""

    sample_id: str
    input_path: str
    scores: tuple[Score, ...] = ()
    error: str = ""


@dataclass
class Prediction:
    """One prediction; `accepted` is true once the scheduling service has its job."""

    uid: str
    name: str
    owner: str
    model_uid: str
    model_name: str
    group: InstanceGroup
    created_at: datetime
    job_id: str
    threshold: str
    samples: list[Sample] = field(default_factory=list)
    status: Status = Status.SUBMITTED
    status_message: str = ""
    progress: int = 0
    driver_id: str = ""
    accepted: bool = False
    stop_requested: bool = False
    best: dict[str, Any] | None = None

    def follow(self, job: JobFacts | None) -> bool:
        """Take over what the job says; True when anything changed. A final status never changes.

        `None` means that the scheduling service does not know the job although it accepted it.
        """
        if self.status.is_final:
            return False
        before = (self.status, self.status_message, self.progress, self.driver_id)
        if job is None:
            self.end(Status.FAILED, "the scheduling service no longer knows the job of this prediction")
        else:
            self.driver_id = job.driver_id or self.driver_id
            if job.state == "FINISHED":
                self._finish(job.result)
            elif job.state == "ERROR":
                self.end(Status.FAILED, "\n".join(part for part in (job.reason, job.log_tail.strip()) if part))
            elif job.state == "KILLED":
                self.end(Status.STOPPED, job.reason or "stopped")
            else:
                self.status = Status.RUNNING if job.state == "RUNNING" else Status.SUBMITTED
                self.status_message = job.reason
                # 100 is said by the finished prediction only.
                done = int(100 * job.done / job.total) if job.total > 0 else 0
                self.progress = max(self.progress, min(99, done))
        return before != (self.status, self.status_message, self.progress, self.driver_id)

    def wait_for(self, reason: str) -> bool:
        """It cannot be submitted yet; True when the reason is new."""
        if self.status_message == reason:
            return False
        self.status_message = reason
        return True

    def end(self, status: Status, message: str) -> None:
        """Settle it."""
        self.status, self.status_message = status, message

    def _finish(self, result: Mapping[str, Any] | None) -> None:
        if not result:
            self.end(Status.FAILED, "the prediction program ended without reporting a result")
            return
        self.best = result.get("best")
        unreadable = [str(name) for name in result.get("unreadable", ())]
        message = f"{len(unreadable)} of {len(self.samples)} could not be read: {', '.join(unreadable[:10])}"
        self.end(Status.FINISHED, message if unreadable else "")
        self.progress = 100
