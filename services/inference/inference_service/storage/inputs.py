"""What lies below the data roots, and what a training's serving.json says that it is for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import invalid, sendable
from servicekit.paths import DataRoots

from inference_service.backends.base import ExportError, read_serving
from inference_service.domain.models import InferenceModel

FIELD = "inputpath"


class DiskInputs:
    """`ports.Inputs`."""

    def __init__(self, data_roots: Sequence[Path]) -> None:
        self._roots = DataRoots(data_roots)

    def resolve(self, text: str) -> tuple[str, bool]:
        path = self._roots.resolve(FIELD, text)
        if sendable(str(path)) != str(path):
            raise invalid(FIELD, text, "a path that does not lead through names that are not UTF-8")
        if not (path.is_dir() or path.is_file()):
            raise invalid(FIELD, text, "a folder or a file")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise invalid(FIELD, text, "a folder or a file that the platform may read")
        return str(path), path.is_file()

    async def task(self, model: InferenceModel, number: int) -> str:
        checkpoints = Path(model.version(number).checkpoints_path)
        try:
            serving = await asyncio.to_thread(read_serving, checkpoints)
        except ExportError:
            return ""
        return str(serving.get("task", ""))
