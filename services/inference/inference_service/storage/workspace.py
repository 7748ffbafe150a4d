"""The folders of predictions: `inference/predictions/<uid>/{input/, manifest.jsonl, spec.json, output/}`."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servicekit.folders import remove_folder, sync_folder
from servicekit.threads import in_thread

from inference_service.domain.predictions import SHOWN_SAMPLES, Prediction, ResultPage, Sample
from inference_service.storage.results import read_page
from inference_service.storage.specs import MANIFEST_FILE, SPEC_FILE, PredictionSpec, write_manifest
from inference_service.triton.addresses import address_file
from inference_service.usecases.ports import Upload

log = logging.getLogger(__name__)

# Files that are made durable at a time: alone each waits for the disk's journal, together they share its turns.
SYNCS = 8
# An upload of which nothing came for so long is taken for one that was cut off by a kill.
STRAY_SECONDS = 3600.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class DiskWorkspace:
    """`ports.Workspace` below the platform's home."""

    def __init__(self, home: Path, data_roots: Sequence[Path], max_image_bytes: int) -> None:
        self._predictions = home / "inference" / "predictions"
        self._repository = home / "inference" / "repository"
        self._address_file = address_file(home)
        self._data_roots = tuple(root.resolve() for root in data_roots)
        self._max_image_bytes = max_image_bytes

    def folder(self, uid: str) -> Path:
        return self._predictions / uid

    def input_folder(self, uid: str) -> Path:
        return self.folder(uid) / "input"

    async def keep(self, uid: str, uploads: Sequence[Upload]) -> list[Sample]:
        return await in_thread(self._keep, uid, uploads)

    async def prepare(self, prediction: Prediction) -> Sequence[str]:
        return await asyncio.to_thread(self._prepare, prediction)

    async def results(self, prediction: Prediction, start: int, length: int | None) -> ResultPage:
        input_dir = str(self._input_dir(prediction))
        return await asyncio.to_thread(read_page, self.folder(prediction.uid), prediction, start, length, input_dir)

    async def has_results(self, prediction: Prediction) -> bool:
        return await asyncio.to_thread((self.folder(prediction.uid) / "output" / prediction.result_file).is_file)

    async def remove(self, uid: str) -> None:
        await in_thread(remove_folder, self.folder(uid))

    async def remove_strays(self, known: set[str]) -> None:
        await in_thread(self._remove_strays, known)

    def _input_dir(self, prediction: Prediction) -> Path:
        if not prediction.input_path:
            return self.input_folder(prediction.uid)
        # A file is a sample, and a folder has none before the worker has looked.
        path = Path(prediction.input_path)
        return path.parent if prediction.samples else path

    def _keep(self, uid: str, uploads: Sequence[Upload]) -> list[Sample]:
        shown: list[Sample] = []

        def kept() -> Iterator[Sample]:
            for sample in self._moved(self.input_folder(uid), uploads):
                if len(shown) < SHOWN_SAMPLES:
                    shown.append(sample)
                yield sample

        if uploads:
            with ThreadPoolExecutor(SYNCS, thread_name_prefix="sync") as pool:
                for _ in pool.map(_sync, (upload.path for upload in uploads)):
                    pass
            write_manifest(self.folder(uid) / MANIFEST_FILE, kept())
            for folder in (self.input_folder(uid), self.folder(uid), self._predictions):
                sync_folder(folder)
        remove_folder(self.folder(uid) / "spool")
        return shown

    def _moved(self, folder: Path, uploads: Sequence[Upload]) -> Iterator[Sample]:
        folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        copies: Counter[str] = Counter()
        for index, upload in enumerate(uploads):
            # The client's name is only shown; the file's own begins with its number and holds nothing special.
            file = f"{index:05d}-{_UNSAFE.sub('_', upload.name)[-100:]}"
            upload.path.replace(folder / file)
            name = upload.name
            while name in taken:
                copies[upload.name] += 1
                name = f"{upload.name} ({copies[upload.name] + 1})"
            taken.add(name)
            yield Sample(name, file)

    def _prepare(self, prediction: Prediction) -> Sequence[str]:
        folder = self.folder(prediction.uid)
        manifest = folder / MANIFEST_FILE
        if prediction.samples and not manifest.exists():
            # A file below a data root, or all uploads, of a release that kept them in the row.
            write_manifest(manifest, prediction.samples)
        entry = self._repository / prediction.model_name / str(prediction.model_version)
        spec = PredictionSpec(
            model_name=prediction.model_name,
            model_version=prediction.model_version,
            bundle=str(entry / "bundle"),
            address_file=str(self._address_file),
            input_dir=str(self._input_dir(prediction)),
            roots=tuple(str(root) for root in (self.input_folder(prediction.uid).resolve(), *self._data_roots)),
            manifest=str(manifest),
            output_dir=str(folder / "output"),
            threshold=float(prediction.threshold),
            max_image_bytes=self._max_image_bytes,
        )
        spec.write(folder / SPEC_FILE)
        return ["python", "-m", "inference_service.worker.predict", str(folder / SPEC_FILE)]

    def _remove_strays(self, known: set[str]) -> None:
        if not self._predictions.is_dir():
            return
        for folder in self._predictions.iterdir():
            if folder.name in known or not folder.is_dir():
                continue
            try:
                if time.time() - _changed_at(folder) > STRAY_SECONDS:
                    remove_folder(folder)
            except FileNotFoundError:
                # Its upload was refused in this moment.
                continue
            except OSError as error:
                log.warning("cannot remove %s: %s", folder, error)


def _changed_at(folder: Path) -> float:
    """When a part of the upload was begun last."""
    spool = folder / "spool"
    return max(each.lstat().st_mtime for each in (folder, *([spool] if spool.is_dir() else ())))


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
