"""Predictions: a life that a job of the scheduling service drives, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from servicekit.jobs import InstanceGroup, JobFacts

RESERVED_NAMES = ("startpredict",)
# Of the uploads of a prediction so many are named in its detail.
SHOWN_SAMPLES = 1000
_MAX_REASON = 500
_SHOWN_UNREADABLE = 10


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


class ResultType(StrEnum):
    """Which kind of results a prediction has."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    COMPARISON = "comparison"
    VECTOR = "vector"


@dataclass(frozen=True)
class Sample:
    """A file to predict: `id` is what the client called it, `file` its name in the input folder."""

    id: str
    file: str


@dataclass(frozen=True)
class Score:
    """A label, its index and probability; `box` is "xmin,ymin,xmax,ymax" of an object, in pixels of its picture."""

    index: int
    label: str
    probability: float
    box: str = ""


@dataclass(frozen=True)
class SampleResult:
    """Scores of one sample, best first, or the vector that the model answers; `error` says why it has neither.

    `file` is relative to the input folder.
    """

    sample_id: str
    file: str
    scores: tuple[Score, ...] = ()
    vector: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class PairResult:
    """Two samples compared; `error` says why they could not be."""

    first_id: str
    second_id: str
    file: str
    distance: float = 0.0
    is_similar: bool = False
    error: str = ""


@dataclass(frozen=True)
class ResultPage:
    """Some results in their order, of `total`; their files are relative to `folder`. `are_images` is false for rows of
    tables and for texts."""

    type: ResultType
    total: int
    folder: str
    results: tuple[SampleResult, ...] | tuple[PairResult, ...]
    are_images: bool = True


@dataclass
class Prediction:
    """One prediction; `accepted` is true once the scheduling service has its job.

    `input_path` is a folder or file below a data root that is read where it lies, and empty for uploads. `samples` are
    the first of the uploads (all, for predictions from before there were manifests), or that one file. `sample_count`
    is 0 while nobody has counted. `model_version` was the main one when the prediction was asked for.
    """

    uid: str
    name: str
    owner: str
    model_uid: str
    model_name: str
    group: InstanceGroup
    created_at: datetime
    job_id: str
    threshold: str
    model_version: int = 1
    input_path: str = ""
    samples: list[Sample] = field(default_factory=list)
    sample_count: int = 0
    done: int = 0
    status: Status = Status.SUBMITTED
    status_message: str = ""
    result_type: ResultType = ResultType.CLASSIFICATION
    result_file: str = "results.jsonl"
    are_images: bool = True
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
        before = (self.status, self.status_message, self.done, self.sample_count, self.driver_id)
        if job is None:
            self.end(Status.FAILED, "the scheduling service no longer knows the job of this prediction")
        else:
            self.driver_id = job.driver_id or self.driver_id
            # A job that begins again reports what its files hold: it never counts back for long.
            self.done = max(self.done, int(job.done))
            self.sample_count = max(self.sample_count, int(job.total))
            if job.state == "FINISHED":
                self._finish(job.result)
            elif job.state == "ERROR":
                self.end(Status.FAILED, "\n".join(part for part in (job.reason, job.log_tail.strip()) if part))
            elif job.state == "KILLED":
                self.end(Status.STOPPED, job.reason or "stopped")
            else:
                self.status = Status.RUNNING if job.state == "RUNNING" else Status.SUBMITTED
                self.status_message = job.reason or job.phase
        return before != (self.status, self.status_message, self.done, self.sample_count, self.driver_id)

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
        try:
            report = _Report.read(result or {})
        except (KeyError, TypeError, ValueError):
            self.end(Status.FAILED, "the prediction program ended without reporting a result")
            return
        self.best, self.result_type, self.are_images = report.best, report.type, report.are_images
        self.result_file = report.result_file
        self.done = self.sample_count = report.samples
        self.end(Status.FINISHED, report.complaint())


@dataclass(frozen=True)
class _Report:
    """What the job's program reported at its end; programs of users run in it, so it may be anything."""

    samples: int
    type: ResultType
    result_file: str
    are_images: bool
    best: dict[str, Any] | None
    unreadable: list[str]
    unreadable_count: int
    reason: str

    def complaint(self) -> str:
        """Which samples have no result, and why the first of them has none."""
        if not self.unreadable_count:
            return ""
        shown = ", ".join(self.unreadable[:_SHOWN_UNREADABLE])
        reason = f"; the first: {self.reason}" if self.reason else ""
        return f"{self.unreadable_count} of {self.samples} have no result: {shown}{reason}"

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> _Report:
        best = result.get("best")
        if best is not None:
            best = {
                "sample": str(best["sample"]),
                "index": int(best["index"]),
                "label": str(best["label"]),
                "probability": float(best["probability"]),
            }
        unreadable = [str(name) for name in result.get("unreadable", ())]
        return cls(
            samples=int(result["samples"]),
            type=ResultType(result.get("type", ResultType.CLASSIFICATION)),
            # Workers of a release that knew classification only wrote one JSON document.
            result_file="results.jsonl" if "type" in result else "results.json",
            are_images=bool(result.get("are_images", True)),
            best=best,
            unreadable=unreadable,
            unreadable_count=int(result.get("unreadable_count", len(unreadable))),
            reason=str(result.get("reason", ""))[:_MAX_REASON],
        )
