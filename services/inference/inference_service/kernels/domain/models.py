"""Models with a kernel of their own: a program that answers tasks, published, started and stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from servicekit.errors import ServiceError, conflict

from inference_service.kernels.domain.pools import GpuUse, KernelLaunch
from inference_service.kernels.domain.profiles import KernelProfile, Pairs

# POST /edimodels/new publishes under the name in its body.
RESERVED_NAMES = ("new",)
KIND = "edimodel"
MODEL_FOLDER, WEIGHTS_FOLDER = "model", "weights"
MAX_MESSAGE_LENGTH = 2000


class KernelState(StrEnum):
    """STOPPED -> STARTING -> STARTED -> STOPPING -> STOPPED; FAILED from STARTING and STARTED.

    Requests write STARTING and STOPPING, the loop the others. STARTED means that a kernel was ready once: what a
    restart of the service ended is started again, and tasks wait for it.
    """

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    FAILED = "FAILED"

    @property
    def runs(self) -> bool:
        """Whether there are to be kernels."""
        return self in (KernelState.STARTING, KernelState.STARTED)

    @property
    def may_change(self) -> bool:
        """Whether the model may be changed and deleted."""
        return self in (KernelState.STOPPED, KernelState.FAILED)


@dataclass
class KernelModel:
    """One model. `kernel_path` is below its folder `model`, `weights` below the folder that holds that one (empty for
    none); `size_bytes` is that of all its files."""

    uid: str
    name: str
    owner: str
    created_at: datetime
    updated_at: datetime
    kernel_path: str
    weights: str = ""
    type: str = ""
    tag: str = ""
    runtime: str = ""
    schema_version: str = "1"
    attributes: Pairs = ()
    environments: Pairs = ()
    size_bytes: int = 0
    profile: KernelProfile = field(default_factory=KernelProfile)
    state: KernelState = KernelState.STOPPED
    status_message: str = ""

    @property
    def all_environments(self) -> dict[str, str]:
        """Of its processes: the model's variables, over them the profile's, over them those of the profile's kernel."""
        return {**dict(self.environments), **dict(self.profile.environments), **dict(self.profile.kernel.environments)}

    def launch(self, folder: Path, execution_user: str) -> KernelLaunch:
        """What its pool is made from; `folder` holds its folder `model`."""
        return KernelLaunch(
            uid=self.uid,
            name=self.name,
            folder=folder / MODEL_FOLDER,
            kernel_file=self.kernel_path,
            description=self.description(folder),
            environment=self.all_environments,
            policy=self.profile.policy.of_pool(self.profile.kernel.connection_timeout_seconds),
            gpu=GpuUse(self.profile.kernel.gpu),
            limits=self.profile.limits(),
            execution_user=execution_user,
            umask=int(self.profile.kernel.umask, 8),
            is_proven=self.state is KernelState.STARTED,
            owner=self.owner,
        )

    def description(self, folder: Path) -> dict[str, Any]:
        """What its kernels are told, with absolute paths. The keys are those of model.json."""
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "type": self.type,
            "tag": self.tag,
            "runtime": self.runtime,
            "kernel_path": self.kernel_path,
            "model_path": str(folder / MODEL_FOLDER),
            "weight_path": str(folder / self.weights) if self.weights else "",
            "attributes": [{"key": key, "value": value} for key, value in self.attributes],
            "mk_environments": [{"name": name, "value": value} for name, value in self.environments],
            "creator": self.owner,
            "uid": self.uid,
            "size": self.size_bytes,
        }

    def start(self) -> bool:
        """Whether it is to be started now; 409 while it is being stopped."""
        if self.state is KernelState.STOPPING:
            raise self.refusal("is being stopped; try again in a moment")
        if self.state.runs:
            return False
        self.state, self.status_message = KernelState.STARTING, ""
        return True

    def stop(self) -> bool:
        """Whether it is to be stopped now. A FAILED one has nothing left to stop."""
        if self.state.runs:
            self.state, self.status_message = KernelState.STOPPING, ""
        elif self.state is KernelState.FAILED:
            self.state, self.status_message = KernelState.STOPPED, ""
        else:
            return False
        return True

    def started(self) -> None:
        """A kernel is ready."""
        self._move(KernelState.STARTED, KernelState.STARTING)

    def stopped(self) -> None:
        """The last kernel has gone."""
        self._move(KernelState.STOPPED, KernelState.STOPPING)

    def fail(self, message: str) -> None:
        """Its kernels cannot run."""
        self._move(KernelState.FAILED, KernelState.STARTING, KernelState.STARTED)
        self.status_message = message[-MAX_MESSAGE_LENGTH:]

    def require_changeable(self) -> None:
        """409 unless it is stopped."""
        if not self.state.may_change:
            raise self.refusal("wait for its end" if self.state is KernelState.STOPPING else "stop it first")

    def require_started(self) -> None:
        """409 unless it takes tasks."""
        if self.state is not KernelState.STARTED:
            because = f": {self.status_message}" if self.status_message else ""
            raise self.refusal(f"it takes tasks only when it is STARTED{because}")

    def refusal(self, why: str) -> ServiceError:
        """409."""
        message = f"{KIND} {self.name!r} is {self.state}; {why}"
        return conflict(message, reason="WRONG_STATE", metadata={"name": self.name, "state": str(self.state)})

    def _move(self, target: KernelState, *sources: KernelState) -> None:
        if self.state not in sources:
            raise ValueError(f"a kernel model cannot go from {self.state} to {target}")
        self.state, self.status_message = target, ""
