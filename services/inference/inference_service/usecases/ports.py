"""What the use cases need from outside: storage, disk, Triton and the other services."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from servicekit.jobs import InstanceGroup, JobFacts, JobRequest

from inference_service.domain.models import InferenceModel, ModelVersion
from inference_service.domain.predictions import Prediction, ResultPage, Sample


@dataclass(frozen=True)
class ModelFacts:
    """A model as the models service tells it."""

    uid: str
    name: str
    owner: str
    type: str
    path: str
    template_name: str
    framework: str
    dataset: str
    instance_group: str
    weights_folder: str = ""


@dataclass(frozen=True)
class TrainingFacts:
    """A training as the training service tells it; `code_path` and `checkpoints_path` are its folders."""

    uid: str
    name: str
    status: str
    code_path: str
    checkpoints_path: str


class Catalog(Protocol):
    """The models service, asked with the current identity."""

    async def get(self, name: str) -> ModelFacts:
        """404 when there is no such model, 403 when it is another user's."""

    async def find(self, name: str) -> ModelFacts | None:
        """As `get`, None when there is none."""

    async def create_inference(self, model: InferenceModel, description: str) -> None:
        """Make the model of type Inference; 409 when the name is taken."""

    async def describe(self, name: str, description: str) -> None:
        """Change the description."""


class Trainings(Protocol):
    """The training service, asked with the current identity."""

    async def get(self, model_name: str, name: str) -> TrainingFacts:
        """404 when there is no such training, 403 when it is another user's."""


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

    async def instance_group(self, field: str, name_or_id: str) -> InstanceGroup:
        """400 naming `field` and listing the known when unknown."""


class ServerAwayError(Exception):
    """The inference server cannot be asked now; the text says why."""


class ServerEndedError(ServerAwayError):
    """It was there, and ended before it answered."""


class LoadRefusedError(Exception):
    """The inference server cannot serve the model; its own words."""


@dataclass(frozen=True)
class Activity:
    """What Triton counted of a version since it was loaded; `last_inference_at` is Unix seconds, 0 for never."""

    last_inference_at: float = 0.0
    failures: int = 0


class LoadTimedOutError(LoadRefusedError):
    """A load takes longer than it may, and goes on."""


class ModelServer(Protocol):
    """Triton. Every call raises ServerAwayError when it cannot be reached."""

    def require(self) -> None:
        """TritonUnavailableError when there is none and there will be none."""

    async def loaded(self) -> Mapping[str, frozenset[int]]:
        """Versions that it serves now, by model."""

    async def activity(self) -> Mapping[tuple[str, int], Activity]:
        """Of each model and version that is loaded."""

    async def load(self, name: str) -> None:
        """Load what the repository offers of it; what it serves and has not changed stays. LoadRefusedError."""

    async def end(self, name: str, versions: Sequence[int]) -> None:
        """End the processes of these, where that can be reached; who waits for them is answered with an error."""

    async def unload(self, name: str) -> None:
        """Serve it no more; unknown is fine."""

    async def probe(self, name: str, version: int) -> None:
        """One inference with zeros; LoadRefusedError unless the answer is one."""

    def processes(self) -> Collection[tuple[str, int]] | None:
        """Models and versions that have a running process of their own; None when that cannot be seen."""

    async def answers(self, name: str, version: int) -> bool | None:
        """False when it counts as loaded although its process is gone: to load it as changed helps.

        None when it gives no answer, because it is busy or hangs.
        """


class Repository(Protocol):
    """The model repository on disk."""

    async def publish(self, model: InferenceModel, number: int = 1) -> None:
        """Put a version there, whole or not at all; repeatable. ExportRefusedError when it cannot be made."""

    async def offer(self, name: str, numbers: Sequence[int]) -> None:
        """Say which of the versions that are there Triton shall serve after its next load; whole and repeatable."""

    async def differs(self, name: str, checkpoints_path: str) -> str:
        """In what a training takes other inputs or answers other labels than the model; nothing when it is alike."""

    async def touch(self, name: str, numbers: Sequence[int]) -> None:
        """Let these count as changed: Triton loads again what has changed only. Unknown is fine."""

    async def versions(self, name: str) -> set[int]:
        """Numbers of those that are there."""

    async def remove_versions(self, name: str, uid: str, numbers: Collection[int]) -> None:
        """Remove these of the model with this uid; unknown is fine."""

    async def remove(self, name: str, uid: str) -> None:
        """Remove the entry of the model with this uid; unknown is fine, and that of another with its name stays."""

    async def entries(self) -> dict[str, str]:
        """Names of all entries, with the uids of their models."""

    async def drafts(self) -> set[str]:
        """What has been begun or is being removed; drafts have the uids of their models."""

    async def rooms(self) -> dict[str, str]:
        """Folders in which processes of models write, with the names of the models."""

    async def sweep(self, drafts: Collection[str], rooms: Collection[str]) -> None:
        """Remove these; unknown is fine."""

    def supports(self, framework: str) -> bool:
        """Whether a training of this framework can be served."""

    @property
    def frameworks(self) -> Sequence[str]:
        """Those that can be served."""

    async def refusal(self, framework: str, code_path: str, checkpoints_path: str) -> str:
        """Why a training cannot be served, as far as its files tell; nothing when it can. KeyError as `supports`."""


class ExportRefusedError(Exception):
    """The training cannot be served; the text says what is missing."""


class InferenceModels(Protocol):
    """Stored inference models, read from memory until something was written. Each write is one transaction."""

    async def add(self, model: InferenceModel) -> None:
        """409 when the name is taken."""

    async def find(self, name: str) -> InferenceModel | None:
        """By name."""

    async def all(self) -> list[InferenceModel]:
        """All, oldest first."""

    async def note_listed(self, model: InferenceModel) -> None:
        """Write the catalog uid."""

    async def note_used(self, uid: str, at: datetime) -> None:
        """Write when it was last asked for."""

    async def add_version(self, uid: str, version: ModelVersion) -> ModelVersion:
        """Add it under the next number, which it gets whatever it had; 404 when the model is gone."""

    async def save_version(self, uid: str, version: ModelVersion) -> None:
        """Write its state and message only: a request may have changed its share."""

    async def note_waiting(self, uid: str, number: int, message: str) -> None:
        """Write what a version that is LOADING waits for; nothing when it is not any more."""

    async def save_traffic(self, model: InferenceModel) -> None:
        """Write the shares of its versions only: the loop may have moved their states on."""

    async def delete_version(self, uid: str, number: int) -> None:
        """Remove the row."""

    async def delete(self, uid: str) -> None:
        """Remove the row and those of its versions."""


class Predictions(Protocol):
    """Stored predictions. Each call is one transaction."""

    async def add(self, prediction: Prediction) -> None:
        """409 when the name is taken."""

    async def find(self, name: str) -> Prediction | None:
        """By name."""

    async def all(self, model_name: str | None = None) -> list[Prediction]:
        """All, or those of a model, oldest first."""

    async def active(self) -> list[Prediction]:
        """Those without a final status, oldest first."""

    async def count_active(self, owner: str) -> int:
        """How many of them are this user's."""

    async def save_state(self, prediction: Prediction) -> None:
        """Write what the reconcile loop decides (never `stop_requested`)."""

    async def request_stop(self, uid: str) -> None:
        """Write that a stop was asked for."""

    async def delete(self, uid: str) -> None:
        """Remove the row."""

    async def uids(self) -> set[str]:
        """Of all."""


@dataclass(frozen=True)
class Upload:
    """A part of the upload that is not a field: what the client called it, and where its bytes lie."""

    name: str
    path: Path


class Inputs(Protocol):
    """What lies below the data roots."""

    def resolve(self, text: str) -> tuple[str, bool]:
        """The path that `inputpath` names, and whether it is a file; 400 when it is no folder either, or outside."""

    async def task(self, model: InferenceModel, number: int) -> str:
        """What a version of the model is for, empty while nobody can say."""


class Workspace(Protocol):
    """The folders of predictions on disk."""

    def folder(self, uid: str) -> Path:
        """Of the prediction with this uid; it need not exist."""

    def input_folder(self, uid: str) -> Path:
        """Where its images are."""

    async def keep(self, uid: str, uploads: Sequence[Upload]) -> list[Sample]:
        """Move spooled files into the input folder under safe names, and write the manifest; the first of them.

        Without files there is no manifest, and nothing is left of what was spooled.
        """

    async def prepare(self, prediction: Prediction) -> Sequence[str]:
        """Write the worker's specification; the worker's command. Repeatable."""

    async def has_results(self, prediction: Prediction) -> bool:
        """Whether its result file is there."""

    async def results(self, prediction: Prediction, start: int, length: int | None) -> ResultPage:
        """Of a finished prediction, all from `start` on when `length` is None. 400 when they do not fit an answer."""

    async def remove(self, uid: str) -> None:
        """Remove the folder; unknown is fine."""

    async def remove_strays(self, known: set[str]) -> None:
        """Remove folders of uploads that never became a prediction (old ones: one may be arriving)."""
