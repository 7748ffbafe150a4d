"""What the use cases of kernel models need from outside: their rows and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from inference_service.kernels.domain.manifests import Manifest
from inference_service.kernels.domain.models import KernelModel, KernelState
from inference_service.usecases.ports import Upload


@dataclass(frozen=True)
class Files:
    """What lies in a model's folder: paths as `KernelModel` has them."""

    kernel_path: str
    weights: str
    size_bytes: int


class KernelModels(Protocol):
    """Stored kernel models. Each call is one transaction."""

    async def add(self, model: KernelModel) -> None:
        """409 when the name is taken."""

    async def find(self, name: str) -> KernelModel | None:
        """By name."""

    async def all(self) -> list[KernelModel]:
        """All, oldest first."""

    async def move(self, model: KernelModel, before: KernelState) -> bool:
        """Write state and message; False, and nothing is written, when it is no longer in the state `before`."""

    async def change(self, model: KernelModel, seen: datetime) -> bool:
        """Write all but state and message; False when it runs, is gone, or was changed after `seen`."""

    async def delete(self, uid: str) -> bool:
        """Remove the row; False when it runs."""


class KernelFolders(Protocol):
    """The folders of kernel models. A model's is made as a draft and there at once when it is whole."""

    def folder(self, uid: str) -> Path:
        """Of the model with this uid; it need not exist."""

    def spool(self, uid: str) -> Path:
        """Where its upload may be received, in the draft."""

    async def copy(self, uid: str, model_path: str) -> None:
        """Copy a folder below the data roots into the draft; 400 naming `modelPath`."""

    async def keep(self, uid: str, uploads: Sequence[Upload]) -> None:
        """Put files, or what is in an archive, into the draft; 400 naming `file` or the file."""

    async def manifest(self, uid: str) -> Manifest:
        """model.json of the draft, an empty one when there is none; 400 naming what is wrong in it."""

    async def finish(self, uid: str, kernel: tuple[str, str], weights: tuple[str, str], model_path: str = "") -> Files:
        """Check the draft and make it the model's folder; `kernel` and `weights` are a field and its text, `model_path`
        is where the folder was copied from. 400 naming the field."""

    async def add_weights(self, model: KernelModel, text: str) -> Files:
        """The same files with weights that lie in the model's folder, or are copied from below the data roots. Nothing
        is left of what is refused or cancelled."""

    async def remove(self, uid: str) -> None:
        """Remove all of it, a draft, too; unknown is fine."""

    async def remove_weights(self, model: KernelModel, weights: str) -> None:
        """Remove weights that were copied beside the model's folder; those in it stay."""

    async def remove_strays(self, known: Mapping[str, str]) -> None:
        """Remove what kills have left: all of models that are not known, and weights that are not those of their model.
        `known` are weights by uid."""

    async def readme(self, uid: str) -> str:
        """README.md of the model, empty when there is none."""
