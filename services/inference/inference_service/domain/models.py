"""Inference models: a finished training on its way to Triton."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from servicekit.errors import Code, ServiceError

RESERVED_NAMES = ("files", "weightfile")


class ModelState(StrEnum):
    """EXPORTING -> LOADING -> READY; FAILED from each. READY means that Triton answered a probe with it once.

    A restart of Triton does not change the state: the loop loads what is READY again, and workers wait.
    """

    EXPORTING = "EXPORTING"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass
class InferenceModel:
    """What was frozen when it was asked for, and how far it is.

    `catalog_uid` is the uid of the model of type Inference in the models service, empty until that exists; `code_path`
    and `checkpoints_path` are folders of the training.
    """

    uid: str
    name: str
    owner: str
    source_model: str
    training_name: str
    framework: str
    template_name: str
    dataset_name: str
    instance_group: str
    code_path: str
    checkpoints_path: str
    created_at: datetime
    state: ModelState = ModelState.EXPORTING
    status_message: str = ""
    catalog_uid: str = ""

    def exported(self) -> None:
        """Its entry is in the model repository."""
        self._move(ModelState.EXPORTING, ModelState.LOADING)

    def served(self) -> None:
        """Triton answers with it."""
        self._move(ModelState.LOADING, ModelState.READY)

    def fail(self, message: str) -> None:
        """It cannot be served."""
        self.state, self.status_message = ModelState.FAILED, message

    def _move(self, source: ModelState, target: ModelState) -> None:
        if self.state is not source:
            raise ValueError(f"an inference model cannot go from {self.state} to {target}")
        self.state, self.status_message = target, ""


class TritonUnavailableError(ServiceError):
    """503: there is no Triton to ask; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNAVAILABLE, "TRITON_UNAVAILABLE", message)
