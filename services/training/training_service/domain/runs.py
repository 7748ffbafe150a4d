"""What trainings and validations have in common: a life that a job of the scheduling service drives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from servicekit.jobs import InstanceGroup, JobFacts

MAX_REFUSAL_CHARACTERS = 2000
# A confusion matrix of a thousand labels.
MAX_VALUE_CHARACTERS = 8 * 1024 * 1024


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


@dataclass
class Run:
    """A training or validation of a model.

    `uid` never changes; `name` is unique within its model; `accepted` is true once the scheduling service has the job.
    """

    uid: str
    name: str
    model_uid: str
    model_name: str
    dataset_name: str
    owner: str
    group: InstanceGroup
    created_at: datetime
    job_id: str
    framework: str = "PyTorch"
    status: Status = Status.SUBMITTED
    status_message: str = ""
    progress: int = 0
    driver_id: str = ""
    accepted: bool = False
    stop_requested: bool = False

    @property
    def title(self) -> str:
        """What people read where runs of several models stand."""
        return f"{self.model_name}/{self.name}"

    def follow(self, job: JobFacts | None) -> bool:
        """Take over what the job says; True when anything changed. A final status never changes.

        `None` means that the scheduling service does not know the job although it accepted it.
        """
        if self.status.is_final:
            return False
        before = (self.status, self.status_message, self.progress, self.driver_id)
        if job is None:
            self._end(Status.FAILED, "the scheduling service no longer knows the job of this run")
        else:
            self.driver_id = job.driver_id or self.driver_id
            if job.state == "FINISHED":
                self._finish(job)
            elif job.state == "ERROR":
                tail = _without(job.log_tail, job.refusal)
                reason = job.refusal[:MAX_REFUSAL_CHARACTERS] or job.reason
                self._end(Status.FAILED, "\n".join(part for part in (reason, job.warning, tail) if part))
            elif job.state == "KILLED":
                self._end(Status.STOPPED, _one_line(job.reason or "stopped", job.warning))
            else:
                self.status = Status.RUNNING if job.state == "RUNNING" else Status.SUBMITTED
                self.status_message = _one_line(job.reason, job.warning)
                # 100 is said by the settled run only.
                self.progress = max(self.progress, min(99, percent(job.done, job.total)))
        return before != (self.status, self.status_message, self.progress, self.driver_id)

    def refuse(self, message: str) -> None:
        """The job can never run."""
        self._end(Status.FAILED, message)

    def stopped_before_start(self) -> None:
        """It was stopped and its job never existed."""
        self._end(Status.STOPPED, "stopped before it started")

    def _finish(self, job: JobFacts) -> None:
        self._end(Status.FINISHED, job.warning)
        self.progress = 100

    def _end(self, status: Status, message: str) -> None:
        self.status, self.status_message = status, message


@dataclass
class Training(Run):
    """One training, with the facts it started from.

    `data` maps split names to folders; `dataset_hash` pins their content; `dataset_type` is its record format.
    `weights` is the validated initial weights (file or folder) or empty; `weights_url` is fetched first. `command` is
    what runs instead of the model's program. `workers` is the number of ranks that run. Of an elastic training
    `cluster_size` is the most workers and `min_workers` the fewest; otherwise `min_workers` is 0. `gpus_per_worker` is
    1 when 0. `study` is the name of the study that it is a trial of, empty for all others: `uid` is also its job's id
    then, and `user_defined` are parameters for its program that are no hyperparameters. Of the `not_finite_series` the
    newest value is no number.
    """

    dataset_uid: str = ""
    dataset_type: str = ""
    dataset_hash: str = ""
    data: dict[str, str] = field(default_factory=dict)
    hyperparameter: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 0
    cluster_size: int = 1
    gpu_percentage: int = 0
    test_interval: int = 100
    test_iterations: int = 10
    sync_mode: str = "SYNC"
    accelerator: str = "Native"
    workers: int = 0
    min_workers: int = 0
    command: str = ""
    distribute_strategy: str = ""
    checkpoint_interval: int = 0
    checkpoints_kept: int = 2
    max_restarts: int = 2
    max_silent_seconds: int = 0
    priority: int = 0
    max_seconds: int = 0
    weights_url: str = ""
    initial_weights: str = ""
    weights_folder: str = ""
    model_path: str = ""
    study: str = ""
    trial_number: int = 0
    user_defined: dict[str, Any] = field(default_factory=dict)
    gpus_per_worker: int = 0
    not_finite_series: list[str] = field(default_factory=list)

    def follow(self, job: JobFacts | None) -> bool:
        before = (self.workers, self.not_finite_series)
        if not self.status.is_final:
            self.workers = job.ranks if job is not None and job.state == "RUNNING" else 0
            self.not_finite_series = list(job.not_finite_series) if job is not None else self.not_finite_series
        changed = before != (self.workers, self.not_finite_series)
        return super().follow(job) or changed

    @property
    def is_elastic(self) -> bool:
        """True when the number of its workers may change while it runs."""
        return self.accelerator == "Elastic"

    @property
    def is_trial(self) -> bool:
        """True when a study started it: it is in no list, and nobody can ask for it by name."""
        return bool(self.study)

    @property
    def title(self) -> str:
        return f"{self.model_name}/{self.study or self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What its program finds in its environment beside what all programs do."""
        return {"SUBID": str(self.trial_number or self.uid)} if self.is_trial else {}

    @property
    def config(self) -> dict[str, Any]:
        """All parameters, as the program of a trial reads them from config.json."""
        return {**self.hyperparameter, "batchsize": self.batch_size, **self.user_defined}

    @property
    def most_workers(self) -> int:
        """How many workers it can ever have: an elastic one may be told more than there is room for."""
        room = room_for(self.group, self.gpu_percentage, self.gpus_per_worker)
        return min(self.cluster_size, room) if self.is_elastic else self.cluster_size

    @property
    def weights(self) -> str:
        """Where the initial weights are; empty when it starts from scratch."""
        return self.initial_weights or self.weights_folder


def room_for(group: InstanceGroup, gpu_percentage: int, gpus_per_worker: int) -> int:
    """The most workers that one training can have in `group`."""
    room = group.room(gpu_percentage)
    return min(room, group.gpus // gpus_per_worker) if group.gpus and gpus_per_worker > 1 else room


@dataclass
class Validation(Run):
    """One validation of a finished training; `pairs` are its results, name and value as text.

    `inference_text` is the inference program when the training's own files have none. `max_silent_seconds` is the
    training's when 0.
    """

    training_uid: str = ""
    training_name: str = ""
    metrics: list[str] = field(default_factory=list)
    threshold: float = 0.0
    input_dir: str = ""
    dataset_type: str = ""
    inference_text: str = ""
    max_silent_seconds: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)

    def _finish(self, job: JobFacts) -> None:
        pairs = _pairs_of(job.result, self.metrics)
        if pairs is None:
            self._end(Status.FAILED, "the validation program ended without reporting a value of every metric")
            return
        self.pairs = pairs
        super()._finish(job)


def _without(tail: str, refusal: str) -> str:
    """The last lines of a log without the refusal at their end, which need not be said twice."""
    shown = tail.strip().removesuffix(refusal).strip()
    # A long line is cut there.
    before, _, last = shown.rpartition("\n")
    return before.strip() if last.endswith("...") and refusal.startswith(last[:-3] or " ") else shown


CLASSIFICATION_METRICS = ("Top1", "Top5", "ConfusionMatrix")
DETECTION_METRICS = ("IoU", "mAP", "mAP50", "mAP_VOC", "mAP_VOC07")
VECTOR_METRICS = ("MAE", "RMSE", "R2")
VALIDATION_METRICS = (*CLASSIFICATION_METRICS, *DETECTION_METRICS, *VECTOR_METRICS)
# By record format. Numbers of a table may be labels or quantities; of other data nothing is known.
_METRICS_OF = {
    "LMDB": CLASSIFICATION_METRICS,
    "TFRecords": CLASSIFICATION_METRICS,
    "ObjectDetection": DETECTION_METRICS,
    "ImageVector": VECTOR_METRICS,
    "CSV": (*CLASSIFICATION_METRICS, *VECTOR_METRICS),
}


def metrics_of(dataset_type: str) -> tuple[str, ...]:
    """The metrics that make sense for a dataset of this record format; all of them when it is not known."""
    return _METRICS_OF.get(dataset_type, VALIDATION_METRICS)


def _one_line(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def percent(done: float, total: float) -> int:
    """Whole percent of `total`, 0 when it is not known. Programs report it: it may be any number."""
    value = 100 * done / total if total > 0 else 0.0
    return int(max(0.0, min(100.0, value))) if math.isfinite(value) else 0


def _pairs_of(result: Mapping[str, Any] | None, metrics: Sequence[str]) -> list[tuple[str, str]] | None:
    """Name and value of each of `metrics`; None when the result, which a program wrote, is something else."""
    rows = (result or {}).get("pairs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    values = {str(row.get("name")): row.get("value") for row in rows}
    pairs = [(name, value) for name in metrics if isinstance(value := values.get(name), str)]
    sizes = [len(value) for _, value in pairs]
    return pairs if len(pairs) == len(metrics) and all(0 < size <= MAX_VALUE_CHARACTERS for size in sizes) else None
