"""Whose models are exported when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference_fakes import FakeCatalog
from inference_service.domain.models import InferenceModel, ModelState
from inference_service.usecases.export_models import ExportModels
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.ports import ExportRefusedError
from servicekit.reconcile import Next
from triton_fixtures import make_model


class Models:
    """Rows in memory."""

    def __init__(self, *models: InferenceModel) -> None:
        self._models = models

    async def all(self) -> list[InferenceModel]:
        return list(self._models)

    async def note_listed(self, model: InferenceModel) -> None: ...

    async def save_version(self, uid: str, version: Any) -> None: ...


class Repository:
    """An export lasts until its model may end."""

    def __init__(self, *names: str) -> None:
        self.begun: list[str] = []
        self.may_end = {name: asyncio.Event() for name in names}
        self.refuses: set[str] = set()

    async def publish(self, model: InferenceModel, number: int = 1) -> None:
        self.begun.append(model.name)
        await self.may_end[model.name].wait()
        if model.name in self.refuses:
            raise ExportRefusedError("no weights")


async def test_a_large_export_holds_up_its_user_only() -> None:
    owners = {"large": "alice", "next": "alice", "small": "bob", "third": "carol", "fourth": "dan"}
    catalog, repository = FakeCatalog(), Repository(*owners)
    models = {
        name: replace(make_model(name, Path("/code"), Path("/checkpoints")), owner=owner)
        for name, owner in owners.items()
    }
    for model in models.values():
        catalog.add(model.name, model.owner, type="Inference")
        model.catalog_uid = catalog.known[model.name].uid
        model.versions[0].state = ModelState.EXPORTING
    rows: Any = Models(*models.values())
    export = ExportModels(rows, catalog, repository, FailVersion(rows, catalog), lambda: None)  # type: ignore[arg-type]

    repository.may_end["small"].set()
    assert await export() is Next.AT_ONCE
    assert repository.begun == ["large", "small", "third"]
    assert models["small"].versions[0].state is not ModelState.EXPORTING
    repository.may_end["third"].set()
    repository.refuses.add("third")
    repository.may_end["fourth"].set()
    while models["fourth"].versions[0].state is ModelState.EXPORTING:
        await export()
    assert models["third"].versions[0].state is ModelState.FAILED
    assert repository.begun == ["large", "small", "third", "fourth"]
    repository.may_end["large"].set()
    repository.may_end["next"].set()
    while await export() is not Next.LATER:
        pass
    assert repository.begun[-1] == "next"
    await export.close()
