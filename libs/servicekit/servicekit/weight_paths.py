"""Where the weights may lie that models and trainings begin from: what `wfinit` and `wtfolder` name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from servicekit.errors import invalid
from servicekit.paths import DataRoots


class WeightPaths:
    """Uploads of an owner (`weights/<owner>` below the home), folders of trainings, and the data roots.

    Who may see a training is known to the training service alone: it asks `training_of` before anything is read.
    """

    def __init__(self, home: Path, data_roots: Sequence[Path]) -> None:
        self._uploads = home / "weights"
        self._trainings = (home / "trainings").resolve()
        self._roots = (*data_roots, self._trainings)

    def uploads_of(self, owner: str) -> Path:
        """The folder of `owner`'s uploads; it need not exist."""
        name = quote(owner, safe="@ ")
        return self._uploads / (name if not name.startswith(".") else f"%2E{name[1:]}")

    def resolve(self, field: str, text: str, owner: str, *, is_folder: bool) -> Path:
        """The existing folder or file that `text` names: the name of an upload of `owner`, else a path.

        400 naming `field` when it lies elsewhere, does not exist or is of the other kind.
        """
        uploads = self.uploads_of(owner)
        names = {path.name for path in uploads.iterdir()} if uploads.is_dir() else set()
        place = DataRoots([*self._roots, uploads])
        path = place.resolve(field, str(uploads / text) if text in names else text)
        if path.is_dir() != is_folder or path == self._trainings:
            raise invalid(field, text, "an existing folder" if is_folder else "an existing file")
        return path

    def training_of(self, path: str) -> str:
        """Folder name of the training that `path` lies in, empty when it lies in none."""
        is_inside = bool(path) and Path(path).is_relative_to(self._trainings)
        return Path(path).relative_to(self._trainings).parts[0] if is_inside else ""
