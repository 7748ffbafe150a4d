"""Which dataset was made last of the same folders in the same way: its records need not be made again.

The answer is kept in small files `known/<digest of folders and recipe>` beside the datasets. They are hints: a dataset
that has gone since, or was imported in another way, is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from datasets_service.domain.words import Backend
from datasets_service.images.pixels import PixelOptions
from datasets_service.importers.base import ImportWork

KNOWN = "known"
MANIFEST = "manifest.sqlite"


class EarlierImports:
    """Hints for one import. Only LMDB keeps pixels as they were; of a lossy record another copy would be made."""

    def __init__(self, work: ImportWork, pixels: PixelOptions, folders: Mapping[str, str]) -> None:
        recipe = [
            work.spec.source_type,
            work.spec.backend,
            pixels.color_mode,
            pixels.shape,
            pixels.resize_mode,
            dict(folders),
        ]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        self._datasets = Path(work.spec.target).parent
        self._hint = self._datasets / KNOWN / digest
        self._is_useful = work.spec.backend is not Backend.TFRECORDS
        self._uid = Path(work.spec.target).name

    def find(self) -> Path | None:
        """The folder of a published dataset that has a manifest."""
        if not self._is_useful:
            return None
        try:
            folder = self._datasets / self._hint.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return folder if (folder / "dataset.json").exists() and (folder / MANIFEST).exists() else None

    def remember(self) -> None:
        """This import is the latest. Written before it is published: until then the hint leads nowhere."""
        if self._is_useful:
            self._hint.parent.mkdir(parents=True, exist_ok=True)
            draft = self._hint.with_name(f"{self._hint.name}.{self._uid}")
            draft.write_text(self._uid, encoding="utf-8")
            draft.replace(self._hint)
