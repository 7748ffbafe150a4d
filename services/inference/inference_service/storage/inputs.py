"""What lies below the data roots, and what a training's serving.json says that it is for."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import invalid, sendable
from servicekit.paths import DataRoots
from workerkit.spool import open_plain

from inference_service.domain.models import InferenceModel

FIELD = "inputpath"
MAX_SERVING_BYTES = 64 * 1024 * 1024


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
        return await asyncio.to_thread(_task, checkpoints / "serving.json")


def _task(file: Path) -> str:
    # Programs of users wrote it.
    try:
        with open_plain(file) as stream:
            content = stream.read(MAX_SERVING_BYTES + 1)
        known = json.loads(content) if len(content) <= MAX_SERVING_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return ""
    return str(known.get("task", "")) if isinstance(known, dict) else ""
