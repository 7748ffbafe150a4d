"""Datasets on disk: `datasets/<uid>/` is published, `datasets/importing/<uid>/` is work under way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path

from servicekit.errors import invalid, sendable
from servicekit.paths import DataRoots

from datasets_service.domain.dataset import Dataset, ImportedRecords
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.storage.repository import records_from
from datasets_service.usecases.ports import JobRequest


class DiskFiles:
    """`ports.Files` below the platform's home."""

    def __init__(self, home: Path, data_roots: tuple[Path, ...]) -> None:
        self._datasets = home / "datasets"
        self._data_roots = data_roots

    async def prepare(self, dataset: Dataset) -> JobRequest:
        return await asyncio.to_thread(self._prepare, dataset)

    async def read_published(self, uid: str) -> ImportedRecords | None:
        return await asyncio.to_thread(self._read_published, uid)

    async def remove_staging(self, uid: str) -> None:
        await asyncio.to_thread(_remove, self._staging(uid))

    async def remove(self, uid: str) -> None:
        await asyncio.to_thread(self._remove_all, uid)

    def _prepare(self, dataset: Dataset) -> JobRequest:
        staging = self._staging(dataset.uid)
        staging.mkdir(parents=True, exist_ok=True)
        spec = ImportSpec(
            uid=dataset.uid,
            name=dataset.name,
            source_type=dataset.source_type,
            backend=dataset.backend,
            options=dataset.options,
            data_roots=tuple(str(root.resolve()) for root in self._data_roots),
            staging=str(staging),
            target=str(self._datasets / dataset.uid),
        )
        spec.write(staging / "spec.json")
        return JobRequest(
            job_id=dataset.job_id,
            name=f"import {dataset.name}",
            owner=dataset.owner,
            instance_group=dataset.group.id,
            command=["python", "-m", "datasets_service.worker.import_dataset", str(staging / "spec.json")],
            working_directory=str(staging),
            dataset=dataset.name,
        )

    def _read_published(self, uid: str) -> ImportedRecords | None:
        with contextlib.suppress(FileNotFoundError):
            return records_from(json.loads((self._datasets / uid / "dataset.json").read_text(encoding="utf-8")))
        return None

    def _remove_all(self, uid: str) -> None:
        _remove(self._staging(uid))
        _remove(self._datasets / uid)
        # Imports of the same source no longer find records here.
        for hint in self._datasets.glob("known/*"):
            with contextlib.suppress(FileNotFoundError):
                if hint.read_text(encoding="utf-8") == uid:
                    hint.unlink()

    def _staging(self, uid: str) -> Path:
        return self._datasets / "importing" / uid


class DiskSources:
    """`ports.Sources` inside the data roots."""

    def __init__(self, data_roots: tuple[Path, ...]) -> None:
        self.roots = tuple(root.resolve() for root in data_roots)
        self._confined = DataRoots(self.roots)

    def path(self, field: str, text: str) -> Path:
        path = self._resolve(field, text)
        if not (path.is_dir() or path.is_file()):
            raise invalid(field, text, "a file or a folder")
        return path

    def folder(self, field: str, text: str) -> Path:
        path = self._resolve(field, text)
        if not path.is_dir():
            raise invalid(field, text, "a folder")
        if not os.access(path, os.R_OK | os.X_OK):
            raise invalid(field, text, "a folder that the platform may read")
        return path

    def file(self, field: str, text: str) -> Path:
        path = self._resolve(field, text)
        if not path.is_file():
            raise invalid(field, text, "a file")
        if not os.access(path, os.R_OK):
            raise invalid(field, text, "a file that the platform may read")
        return path

    def _resolve(self, field: str, text: str) -> Path:
        path = self._confined.resolve(field, text)
        if sendable(str(path)) != str(path):
            raise invalid(field, text, "a path that does not lead through names that are not UTF-8")
        return path


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
