"""What the use cases need from outside: storage, disk and the other services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

from servicekit.jobs import InstanceGroup, JobFacts, JobRequest
from workerkit.trial_results import TrialResults

from training_service.domain.metrics import MetricPoint, SpoolPlace
from training_service.domain.removals import Removal
from training_service.domain.runs import Run, Training, Validation

R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class ModelFacts:
    """A model as the models service tells it."""

    uid: str
    name: str
    path: str
    owner: str
    framework: str
    accelerator: str
    dataset: str
    batch_size: int
    instance_group: str
    hyperparameter: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: str = ""
    weights_folder: str = ""
    type: str = "Training"
    distribute_strategy: str = ""
    template: str = ""


@dataclass(frozen=True)
class FrameworkFacts:
    """A framework that is installed: `name` is what a request may say, `backend` what its models are written for."""

    name: str
    backend: str


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset as the datasets service tells it; `splits` maps train, val and test to folders.

    `type` is its record format: LMDB, TFRecords, CSV, ImageVector, ObjectDetection or Other.
    """

    name: str
    uid: str
    status: str
    content_hash: str
    splits: Mapping[str, str]
    type: str = ""


@dataclass(frozen=True)
class RunModel:
    """A model that runs belong to; `gone_since` is when it was first found to be gone."""

    uid: str
    name: str
    gone_since: datetime | None = None


@dataclass(frozen=True)
class SettledHyperparameters:
    """All that would hold for a trial, and the names of what the model's framework has."""

    values: Mapping[str, Any]
    known: Sequence[str] = ()


class Limits(Protocol):
    """What holds for every run; 0 is no limit."""

    @property
    def max_silent_seconds(self) -> int:
        """Without a sign of life for so long a worker is hung."""

    @property
    def max_disk_bytes(self) -> int:
        """How much a run may write."""

    @property
    def stop_grace_seconds(self) -> float:
        """What workers have for a last checkpoint before they are ended by force."""

    @property
    def worker_environment(self) -> Mapping[str, str]:
        """What every worker finds in its environment."""


class Models(Protocol):
    """The models service."""

    async def get(self, name: str) -> ModelFacts:
        """404 when there is no such model, 403 when it is another user's."""

    async def frameworks(self) -> Sequence[FrameworkFacts]:
        """The frameworks that are installed."""

    async def program(self, name: str, file: str) -> str | None:
        """The text of a file of a model's own; None when it has none of this name that is a program."""

    async def template_program(self, name: str, file: str) -> str | None:
        """The same of a template, from the platform's copy of it."""

    async def settle(
        self,
        name: str,
        given: Mapping[str, Any],
        candidates: Mapping[str, Sequence[Any]],
        *,
        accelerator: str,
        field: str,
    ) -> SettledHyperparameters:
        """A model's hyperparameters with `given` over them; 400 naming `field`.NAME, also for one of `candidates`."""

    async def uid_of(self, name: str) -> str | None:
        """The uid of the model that has this name now, asked as the service itself; None when there is none."""


class Datasets(Protocol):
    """The datasets service."""

    async def get(self, name: str) -> DatasetFacts:
        """404 when there is no such dataset."""


class Jobs(Protocol):
    """The scheduling service. Every call may be repeated; 503 when the service is away."""

    async def submit(self, request: JobRequest) -> None:
        """400 when the job can never run."""

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        """The jobs that are known; unknown ids are left out."""

    async def stop(self, job_id: str) -> None:
        """404 when the job was never submitted."""

    async def delete(self, job_id: str) -> None:
        """Forget an ended job; unknown is fine."""

    async def instance_group(self, field: str, name_or_id: str, *, named_by: str) -> InstanceGroup:
        """400 naming `field` and listing the known when unknown; `named_by` says in words what named it."""


class Runs(Protocol[R]):
    """Stored trainings or validations. Each call is one transaction."""

    async def add(self, run: R) -> None:
        """409 when the model has a run of this name, 400 when a training that it uses has been deleted."""

    async def find(self, model_uid: str, name: str) -> R | None:
        """The run of this model with this name."""

    async def of_model(self, model_uid: str) -> list[R]:
        """The runs of a model that can be asked for by name, oldest first."""

    async def belonging_to(self, model_uid: str) -> list[R]:
        """All runs of a model, oldest first."""

    async def active(self) -> list[R]:
        """Those without a final status, oldest first."""

    async def save_state(self, run: R) -> None:
        """Write what the reconcile loop decides (never `stop_requested`)."""

    async def request_stop(self, uid: str) -> None:
        """Write that a stop was asked for."""

    async def remove(self, uid: str) -> None:
        """Replace the row by the order to remove what belongs to it; 404 when there is none.

        409 while it is active, and while an active validation measures it or an active training began from its weights.
        """

    async def models(self) -> list[RunModel]:
        """Every model that has a run here."""

    async def set_orphaned(self, model_uid: str, since: datetime | None) -> None:
        """Write since when the model is known to be gone; None: it is not."""


class Trainings(Runs[Training], Protocol):
    """Stored trainings."""

    async def by_uid(self, uid: str) -> Training | None:
        """The training of this uid."""


class Trials(Trainings, Protocol):
    """Stored trainings of studies. `add` is 404 with the reason DELETED when the trial was deleted."""

    async def known(self, uids: Sequence[str]) -> Mapping[str, Training]:
        """Those of the trials that there are, by uid; deleted ones are left out."""

    async def was_deleted(self, uid: str) -> bool:
        """Whether it was deleted, and is known to have been."""

    async def active_of_model(self, model_uid: str) -> list[Training]:
        """Trials of a model without a final status, also deleted ones that are being ended; oldest first."""

    async def delete(self, uids: Sequence[str], now: datetime) -> None:
        """Take trials out of sight and order their end; ids that never came can come no more."""

    async def deleted(self) -> Sequence[str]:
        """Deleted trials that have ended."""

    async def forget_deleted(self, before: datetime) -> None:
        """Forget which trials were deleted before then, as far as nothing is left of them."""


class Validations(Runs[Validation], Protocol):
    """Stored validations."""


class Removals(Protocol):
    """What is left of deleted runs. Each call is one transaction."""

    async def pending(self) -> list[Removal]:
        """The orders that are not carried out yet."""

    async def forget(self, removal: Removal) -> None:
        """Remove the order, and the metrics of its job."""


class Metrics(Protocol):
    """Stored curves."""

    async def add(self, points: Sequence[MetricPoint]) -> int:
        """Write points and say how many were new; one that is known already is left as it is."""

    async def series(self, job_id: str) -> list[str]:
        """The names of a job's curves."""

    async def page(self, job_id: str, series: str, since_step: int, count: int) -> list[MetricPoint]:
        """The first `count` points of one series from `since_step` on, by step.

        Here as below a point of an attempt counts if its step lies before the first step, of any series of the job, of
        every later attempt: what lies behind was discarded.
        """

    async def last(self, job_id: str, series: str) -> MetricPoint | None:
        """The point of the highest step."""

    async def extremes(self, job_id: str, series: str, ranges: range) -> list[MetricPoint]:
        """By step, the points with the lowest and the highest value of each range that has points.

        A range begins at each of `ranges` and is `ranges.step` wide; the last one ends before `ranges.stop`.
        """


class MetricSpool(Protocol):
    """What workers wrote on disk."""

    async def read(
        self, job_id: str, run_directory: str, since: SpoolPlace
    ) -> tuple[list[MetricPoint], SpoolPlace | None]:
        """Some points of a job's attempts, and where to go on; None at the end.

        `run_directory` is that of the newest attempt. Each attempt begins where its worker had an answer; one that
        cannot be read is passed over.
        """


class Workspace(Protocol):
    """The folders of runs on disk."""

    async def prepare_training(self, training: Training) -> Sequence[str]:
        """Copy the model directory, write the worker's specification; the worker's command. Repeatable."""

    async def prepare_validation(self, validation: Validation) -> Sequence[str]:
        """Write the worker's specification; the worker's command. Repeatable."""

    async def remove(self, removal: Removal) -> None:
        """Remove the folder of a deleted run, whole; OSError when that cannot be. Repeatable."""

    def folder(self, run: Run) -> str:
        """The run's folder."""

    def weight_file(self, training: Training) -> str | None:
        """Name of the best weight file so far: the final one, else that of the newest epoch."""

    def missing_program(self, training: Training) -> str:
        """The name of the inference program that a training's files lack; empty when there it is, or none is needed."""

    def results(self, training: Training) -> TrialResults:
        """What the program of a trial wrote as its results. Blocking."""

    def path_of(self, training: Training) -> str:
        """The folder of a training's weights and checkpoints."""
