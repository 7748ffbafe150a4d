"""What the use cases need from outside: storage, disk and the other services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from servicekit.jobs import InstanceGroup, JobFacts, JobRequest

from training_service.domain.metrics import MetricPoint
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
    weights_file: str = ""
    weights_folder: str = ""
    type: str = "Training"
    distribute_strategy: str = ""


@dataclass(frozen=True)
class FrameworkFacts:
    """A framework that is installed: `name` is what a request may say, `backend` what its models are written for."""

    name: str
    backend: str


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset as the datasets service tells it; `splits` maps train, val and test to folders.

    `type` is its record format: LMDB, TFRECORDS, CSV, ImageVector, ObjectDetection or Other.
    """

    name: str
    uid: str
    status: str
    content_hash: str
    splits: Mapping[str, str]
    type: str = ""


class Limits(Protocol):
    """What holds for every run; 0 is no limit."""

    @property
    def max_silent_seconds(self) -> int:
        """Without a sign of life for so long a worker is hung."""

    @property
    def max_disk_bytes(self) -> int:
        """How much a run may write."""

    @property
    def worker_environment(self) -> Mapping[str, str]:
        """What every worker finds in its environment."""


class Models(Protocol):
    """The models service."""

    async def get(self, name: str) -> ModelFacts:
        """404 when there is no such model, 403 when it is another user's."""

    async def frameworks(self) -> Sequence[FrameworkFacts]:
        """The frameworks that are installed."""

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
        """409 when the model has a run of this name."""

    async def find(self, model_uid: str, name: str) -> R | None:
        """The run of this model with this name."""

    async def of_model(self, model_uid: str) -> list[R]:
        """All runs of a model, oldest first."""

    async def active(self) -> list[R]:
        """Those without a final status, oldest first."""

    async def save_state(self, run: R) -> None:
        """Write what the reconcile loop decides (never `stop_requested`)."""

    async def request_stop(self, uid: str) -> None:
        """Write that a stop was asked for."""

    async def delete(self, uid: str) -> None:
        """Remove the row and its metrics."""

    async def models(self) -> list[tuple[str, str]]:
        """(uid, name) of every model that has a run here."""


class Trainings(Runs[Training], Protocol):
    """Stored trainings."""

    async def by_job(self, job_id: str) -> Training | None:
        """The training that a job belongs to."""


class Validations(Runs[Validation], Protocol):
    """Stored validations."""


class Metrics(Protocol):
    """Stored curves."""

    async def add(self, points: Sequence[MetricPoint]) -> int:
        """Write points and say how many were new; one that is known already is left as it is."""

    async def read(self, job_id: str, series: Sequence[str]) -> list[MetricPoint]:
        """Points by series and step, the newest attempt's value of each; all series when none is named."""


class MetricSpool(Protocol):
    """What workers wrote on disk."""

    async def read(self, job_id: str, run_directory: str) -> list[MetricPoint]:
        """All points of every attempt of a job; `run_directory` is that of the newest."""


class InitialWeights(Protocol):
    """Where initial weights may lie."""

    def resolve(self, field: str, text: str, owner: str, *, is_folder: bool) -> str:
        """The existing file or folder that `text` names, as an absolute path; empty for empty text.

        400 naming `field` when it is not an upload of `owner`, a path of a training or one inside the data roots.
        """


class Workspace(Protocol):
    """The folders of runs on disk."""

    async def prepare_training(self, training: Training) -> Sequence[str]:
        """Copy the model directory, write the worker's specification; the worker's command. Repeatable."""

    async def prepare_validation(self, validation: Validation) -> Sequence[str]:
        """Write the worker's specification; the worker's command. Repeatable."""

    async def remove(self, run: Run) -> None:
        """Remove the run's folder."""

    def folder(self, run: Run) -> str:
        """The run's folder."""

    def weight_file(self, training: Training) -> str | None:
        """Name of the best weight file so far: the final one, else that of the newest epoch."""

    def path_of(self, training: Training) -> str:
        """The folder of a training's weights and checkpoints."""
