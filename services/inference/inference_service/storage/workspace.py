"""The folders of predictions: `inference/predictions/<uid>/{input/,output/results.json,spec.json}`."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from inference_service.domain.predictions import Prediction, Sample, SampleResult
from inference_service.domain.specs import RESULT_FILE, PredictionSpec, read_results
from inference_service.usecases.ports import Upload

# An upload that takes longer than this is taken for one that was cut off by a kill.
STRAY_SECONDS = 3600.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class DiskWorkspace:
    """`ports.Workspace` below the platform's home."""

    def __init__(self, home: Path) -> None:
        self._predictions = home / "inference" / "predictions"
        self._repository = home / "inference" / "repository"
        self._address_file = home / "inference" / "triton.json"

    def folder(self, uid: str) -> Path:
        return self._predictions / uid

    def input_folder(self, uid: str) -> Path:
        return self.folder(uid) / "input"

    async def keep(self, uid: str, uploads: Sequence[Upload]) -> list[Sample]:
        return await asyncio.to_thread(self._keep, uid, uploads)

    async def prepare(self, prediction: Prediction) -> Sequence[str]:
        return await asyncio.to_thread(self._prepare, prediction)

    async def results(self, prediction: Prediction) -> list[SampleResult]:
        return await asyncio.to_thread(read_results, self.result_file(prediction.uid))

    async def remove(self, uid: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.folder(uid), ignore_errors=True)

    async def remove_strays(self, known: set[str]) -> None:
        await asyncio.to_thread(self._remove_strays, known)

    def result_file(self, uid: str) -> Path:
        """Where the worker writes."""
        return self.folder(uid) / "output" / RESULT_FILE

    def _keep(self, uid: str, uploads: Sequence[Upload]) -> list[Sample]:
        folder = self.input_folder(uid)
        folder.mkdir(parents=True, exist_ok=True)
        samples: list[Sample] = []
        taken: set[str] = set()
        for index, upload in enumerate(uploads):
            # The client's name is only shown; the file's own begins with its number and holds nothing special.
            file = f"{index:05d}-{_UNSAFE.sub('_', upload.name)[-100:]}"
            upload.path.replace(folder / file)
            name, copy = upload.name, 1
            while name in taken:
                copy += 1
                name = f"{upload.name} ({copy})"
            taken.add(name)
            samples.append(Sample(name, file))
        shutil.rmtree(self.folder(uid) / "spool", ignore_errors=True)
        return samples

    def _prepare(self, prediction: Prediction) -> Sequence[str]:
        spec = PredictionSpec(
            model_name=prediction.model_name,
            bundle=str(self._repository / prediction.model_name / "1" / "bundle"),
            address_file=str(self._address_file),
            input_dir=str(self.input_folder(prediction.uid)),
            output_file=str(self.result_file(prediction.uid)),
            threshold=float(prediction.threshold),
            samples=tuple(prediction.samples),
        )
        file = self.folder(prediction.uid) / "spec.json"
        spec.write(file)
        return ["python", "-m", "inference_service.worker.predict", str(file)]

    def _remove_strays(self, known: set[str]) -> None:
        if not self._predictions.is_dir():
            return
        for folder in self._predictions.iterdir():
            if folder.name not in known and time.time() - folder.stat().st_mtime > STRAY_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
