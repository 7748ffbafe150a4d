"""Exports that fail as nobody foresaw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference_fakes import FakeCatalog
from inference_service.domain.models import ModelState
from inference_service.usecases.export_models import ExportModels
from inference_service.usecases.fail_version import FailVersion
from residency_room import FakeModels
from servicekit.reconcile import Next


class Folders:
    """A repository for which one training is too much."""

    def __init__(self) -> None:
        self.published: list[str] = []

    async def publish(self, model: Any, number: int) -> None:
        if model.name == "odd":
            raise RecursionError("too deep")
        self.published.append(model.name)


async def test_a_training_that_nobody_foresaw_keeps_no_others_waiting(tmp_path: Path) -> None:
    models: Any = FakeModels()
    folders: Any = Folders()
    odd, plain = (models.add(name, ModelState.EXPORTING, catalog_uid=name) for name in ("odd", "plain"))
    step = ExportModels(models, FakeCatalog(), folders, FailVersion(models, FakeCatalog()), lambda: None)
    while await step() is Next.AT_ONCE:
        pass
    assert (odd.state, "too deep" in odd.status_message) == (ModelState.FAILED, True)
    assert (plain.state, folders.published) == (ModelState.LOADING, ["plain"])
