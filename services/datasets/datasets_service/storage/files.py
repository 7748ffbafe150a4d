"""Datasets on disk: `datasets/<uid>/` is published, `datasets/importing/<uid>/` is work under way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path

from servicekit.errors import invalid
from servicekit.paths import DataRoots

from datasets_service.domain.dataset import Dataset, ImportedRecords
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.storage.repository import records_from
from datasets_service.usecases.ports import JobRequest
from datasets_service.worker.class_folders import class_names


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
        await asyncio.to_thread(_remove, self._staging(uid))
        await asyncio.to_thread(_remove, self._datasets / uid)

    def _prepare(self, dataset: Dataset) -> JobRequest:
        images, staging = dataset.images, self._staging(dataset.uid)
        staging.mkdir(parents=True, exist_ok=True)
        sources = {"train": images.train_path, "val": images.validation_path, "test": images.test_path}
        spec = ImportSpec(
            uid=dataset.uid,
            name=dataset.name,
            sources={split: path for split, path in sources.items() if path},
            data_roots=tuple(str(root.resolve()) for root in self._data_roots),
            color_mode=images.color_mode,
            width=images.width,
            height=images.height,
            resize_mode=images.resize_mode,
            validation_percentage=images.validation_percentage,
            test_percentage=images.test_percentage,
            staging=str(staging),
            target=str(self._datasets / dataset.uid),
        )
        spec.write(staging / "spec.json")
        return JobRequest(
            job_id=dataset.job_id,
            name=f"import {dataset.name}",
            owner=dataset.owner,
            instance_group=dataset.group.id,
            command=["python", "-m", "datasets_service.worker.import_images", str(staging / "spec.json")],
            working_directory=str(staging),
            dataset=dataset.name,
        )

    def _read_published(self, uid: str) -> ImportedRecords | None:
        with contextlib.suppress(FileNotFoundError):
            return records_from(json.loads((self._datasets / uid / "dataset.json").read_text(encoding="utf-8")))
        return None

    def _staging(self, uid: str) -> Path:
        return self._datasets / "importing" / uid


class DiskSources:
    """`ports.Sources` inside the data roots."""

    def __init__(self, data_roots: tuple[Path, ...]) -> None:
        self._data_roots = tuple(root.resolve() for root in data_roots)

    async def resolve(self, field: str, text: str) -> Path:
        path = await asyncio.to_thread(DataRoots(self._data_roots).resolve, field, text)
        if not path.is_dir():
            raise invalid(field, text, "a folder")
        return path

    async def class_names(self, folder: Path) -> list[str]:
        return await asyncio.to_thread(class_names, folder, self._data_roots)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
