"""Triton's model repository: `inference/repository/<name>/`, each entry whole or not there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from inference_service.backends.base import ExportError, Serving, Source
from inference_service.backends.registry import BACKENDS, make_backend
from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import ExportRefusedError

# Which inference model an entry belongs to: a later one of the same name is exported anew.
OWNER_FILE = ".dlmesh-uid"


class DiskRepository:
    """`ports.Repository` below the platform's home."""

    def __init__(self, home: Path) -> None:
        self._root = home / "inference" / "repository"
        # Beside it, on the same disk: Triton lists every folder of the repository as a model.
        self._drafts = home / "inference" / "drafts"

    @property
    def frameworks(self) -> Sequence[str]:
        return tuple(BACKENDS)

    def supports(self, framework: str) -> bool:
        return framework in BACKENDS

    async def lacks(self, checkpoints_path: str) -> Sequence[str]:
        return await asyncio.to_thread(Serving.lacks, Path(checkpoints_path) / "serving.json")

    async def publish(self, model: InferenceModel) -> None:
        try:
            await asyncio.to_thread(self._publish, model)
        except ExportError as error:
            raise ExportRefusedError(str(error)) from error

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self._remove, name)

    async def entries(self) -> set[str]:
        return {folder.name for folder in self._root.iterdir()} if self._root.is_dir() else set()

    def _publish(self, model: InferenceModel) -> None:
        entry = self._root / model.name
        if entry.is_dir():
            if (entry / OWNER_FILE).is_file() and (entry / OWNER_FILE).read_text() == model.uid:
                return
            self._remove(model.name)
        draft = self._drafts / model.uid
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        source = Source(model.name, Path(model.code_path), Path(model.checkpoints_path))
        try:
            make_backend(model.framework).write(source, draft)
            (draft / OWNER_FILE).write_text(model.uid)
            self._root.mkdir(parents=True, exist_ok=True)
            draft.rename(entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _remove(self, name: str) -> None:
        entry = self._root / name
        if not entry.exists():
            return
        # Renamed first: a half-removed entry must not be taken for a model.
        self._drafts.mkdir(parents=True, exist_ok=True)
        gone = self._drafts / f"{name}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
