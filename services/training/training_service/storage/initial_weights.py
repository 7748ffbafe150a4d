"""Where initial weights may lie on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from servicekit.errors import invalid
from servicekit.paths import DataRoots


class DiskInitialWeights:
    """Uploads of the owner, folders of trainings, and the data roots."""

    def __init__(self, home: Path, data_roots: Sequence[Path]) -> None:
        self._uploads = home / "weights"
        self._roots = [*data_roots, home / "trainings"]

    def resolve(self, field: str, text: str, owner: str, *, is_folder: bool) -> str:
        if not text:
            return ""
        # The models service keeps uploads in a folder named so.
        uploads = self._uploads / quote(owner, safe="@ ")
        path = DataRoots([*self._roots, uploads]).resolve(field, self._upload(uploads, text))
        if path.is_dir() != is_folder:
            raise invalid(field, text, "an existing folder" if is_folder else "an existing file")
        return str(path)

    def _upload(self, uploads: Path, text: str) -> str:
        names = {path.name for path in uploads.iterdir()} if uploads.is_dir() else set()
        return str(uploads / text) if text in names else text
