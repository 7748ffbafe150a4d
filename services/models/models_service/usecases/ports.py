"""What the use cases need from the outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from models_service.domain.model import Model
from models_service.domain.template import Template


class Catalog(Protocol):
    """Templates, models and the folders that are to be removed. Every method is one transaction.

    A folder is *reserved* before it is made: that writes the order to remove it later. The transaction that stores the
    template or model takes the order back. So a process may be killed anywhere and nothing half-made is ever seen.
    """

    async def reserve(self, directory: Path, until: datetime) -> None:
        """Order that `directory` be removed at `until` unless a row takes it before."""

    async def release(self, directory: Path) -> None:
        """Make the order for `directory` due now."""

    async def due_removals(self, now: datetime) -> Sequence[Path]:
        """Folders whose order is due."""

    async def forget_removal(self, directory: Path) -> None:
        """`directory` is gone: strike the order."""

    async def list_templates(self) -> Sequence[Template]:
        """All templates by name."""

    async def find_template(self, name: str) -> Template | None: ...

    async def add_template(self, template: Template) -> None:
        """409 when the name is taken; takes the reservation of its folder unless it is built in."""

    async def change_template(self, name: str, change: Callable[[Template], Template]) -> Template:
        """Read, change and write in one transaction; a folder that is replaced is ordered to be removed. 404."""

    async def remove_template(self, name: str) -> None:
        """Remove the row and order its folder removed; 409 naming a model made from it, 404."""

    async def list_models(self) -> Sequence[Model]:
        """All models by name."""

    async def find_model(self, name: str) -> Model | None: ...

    async def find_model_by_uid(self, uid: str) -> Model | None: ...

    async def add_model(self, model: Model) -> None:
        """409 when the name is taken, 400 when its template is gone; takes the reservation of its folder."""

    async def change_model(self, name: str, change: Callable[[Model], Model]) -> Model:
        """Read, change and write in one transaction; 404."""

    async def remove_model(self, uid: str) -> None:
        """Remove the row and order its folder removed; nothing when it is gone already."""


@dataclass(frozen=True)
class InstanceGroup:
    id: str
    name: str


class InstanceGroups(Protocol):
    async def find(self, name_or_id: str, field: str) -> InstanceGroup:
        """400 naming `field` and the known groups when there is no such group."""


class Datasets(Protocol):
    async def require(self, name: str, field: str) -> None:
        """400 naming `field` when the caller has no such dataset, 403 when it is another's."""


class Activity(Protocol):
    async def of_model(self, name: str) -> str | None:
        """What of the model is running or waiting (`training t1`), or None."""
