"""Inference models: finished trainings on their way to Triton, as versions of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from servicekit.errors import Code, ServiceError, invalid, not_found

RESERVED_NAMES = ("files", "weightfile")
ALL_PERCENT = 100


class ModelState(StrEnum):
    """EXPORTING -> LOADING -> READY, and back to EXPORTING when its folder was lost; FAILED from the first two.

    READY means that Triton answered a probe with it once. Neither a restart of Triton nor that an idle model left its
    memory changes the state: it is loaded again when asked.
    """

    EXPORTING = "EXPORTING"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


# The best of them is what a model as a whole is said to be.
_BEST_FIRST = (ModelState.READY, ModelState.LOADING, ModelState.EXPORTING, ModelState.FAILED)


@dataclass
class ModelVersion:
    """One training of an inference model: a real version of Triton's, `repository/<model>/<number>/`.

    `code_path` and `checkpoints_path` are folders of the training; `percentage` is its share (0 to 100) of the requests
    that name no version.
    """

    number: int
    source_model: str
    training_name: str
    framework: str
    code_path: str
    checkpoints_path: str
    created_at: datetime
    state: ModelState = ModelState.EXPORTING
    status_message: str = ""
    percentage: int = 0

    def exported(self) -> None:
        """Its folder is in the model repository."""
        self._move(ModelState.EXPORTING, ModelState.LOADING)

    def served(self) -> None:
        """Triton answers with it."""
        self._move(ModelState.LOADING, ModelState.READY)

    def lost(self) -> None:
        """Its folder has gone."""
        self._move(ModelState.LOADING, ModelState.EXPORTING)

    def fail(self, message: str) -> None:
        """It cannot be served."""
        self.state, self.status_message = ModelState.FAILED, message

    def _move(self, source: ModelState, target: ModelState) -> None:
        if self.state is not source:
            raise ValueError(f"a version of an inference model cannot go from {self.state} to {target}")
        self.state, self.status_message = target, ""


@dataclass
class InferenceModel:
    """What was frozen when it was asked for, and its versions by number; it always has one.

    `source_model` is the model that version 1 is a training of. `catalog_uid` is the uid of the model of type Inference
    in the models service, empty until that exists. `last_version` is the highest number ever given: none comes twice.
    `last_used_at` is when a program or a prediction last asked for it, as far as it was noted.
    """

    uid: str
    name: str
    owner: str
    source_model: str
    template_name: str
    dataset_name: str
    instance_group: str
    created_at: datetime
    catalog_uid: str = ""
    last_version: int = 1
    last_used_at: datetime | None = None
    versions: list[ModelVersion] = field(default_factory=list)

    @property
    def state(self) -> ModelState:
        """That of the best version."""
        return min((version.state for version in self.versions), key=_BEST_FIRST.index)

    @property
    def status_message(self) -> str:
        """What the best version says; of several the newest."""
        return next(each.status_message for each in reversed(self.versions) if each.state is self.state)

    @property
    def main_version(self) -> int:
        """Number of the version with the largest share of the traffic; of several the lowest."""
        return max(self.versions, key=lambda version: (version.percentage, -version.number)).number

    @property
    def ready_versions(self) -> list[int]:
        """Numbers of those that can answer."""
        return [version.number for version in self.versions if version.state is ModelState.READY]

    def find_version(self, number: int) -> ModelVersion | None:
        """None when there is no such version (any more)."""
        return next((version for version in self.versions if version.number == number), None)

    def version(self, number: int) -> ModelVersion:
        """404 when there is no such version (any more)."""
        found = self.find_version(number)
        if found is None:
            raise not_found("version", f"{self.name}/{number}")
        return found

    def divide(self, shares: Mapping[int, int]) -> None:
        """Give each version its percentage, none to those not named; 400 unless all that get something are READY."""
        for number, percentage in shares.items():
            version = self.find_version(number)
            if version is None:
                raise invalid("shares.version", number, [str(each.number) for each in self.versions])
            if not 0 <= percentage <= ALL_PERCENT:
                raise invalid("shares.percentage", percentage, "a whole number from 0 to 100")
            if percentage and version.state is not ModelState.READY:
                raise invalid("shares.version", number, f"a version that is READY; this one is {version.state}")
        if sum(shares.values()) != ALL_PERCENT:
            raise invalid("shares", sum(shares.values()), f"percentages that add up to {ALL_PERCENT}")
        for version in self.versions:
            version.percentage = shares.get(version.number, 0)

    def copy(self) -> InferenceModel:
        """One that can be changed without this one changing."""
        return replace(self, versions=[replace(version) for version in self.versions])


class TritonUnavailableError(ServiceError):
    """503: there is no Triton to ask; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNAVAILABLE, "TRITON_UNAVAILABLE", message)
