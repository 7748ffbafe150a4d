"""The uploads of studies on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from servicekit.folders import copy_file, remove_folder, sync_folder

# A folder without a row that is older than this is nobody's.
ORPHAN_SECONDS = 24 * 3600.0
UPLOAD = "upload"


class DiskStudyFolders:
    """`usecases.ports.StudyFolders` below `home`/tuning."""

    def __init__(self, home: Path, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        self._home, self._root, self._orphan_seconds = home, home / "tuning", orphan_seconds

    def spool(self, name: str) -> Path:
        """Where an upload is received; made by who writes there, and removed by who asked for it."""
        return self._root / f".spool-{name}"

    def folder(self, uid: str) -> Path:
        """What belongs to one study."""
        return self._root / uid

    def publish(self, uid: str, upload: Path) -> str:
        folder = self.folder(uid)
        folder.mkdir(parents=True)
        copy_file(upload, folder / UPLOAD)
        for path in (folder, self._root):
            sync_folder(path)
        return str((folder / UPLOAD).relative_to(self._home))

    def remove(self, uid: str) -> None:
        if self.folder(uid).exists():
            remove_folder(self.folder(uid))

    def orphans(self) -> Sequence[str]:
        now = time.time()
        found = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            try:
                if now - path.lstat().st_mtime >= self._orphan_seconds and path.is_dir():
                    found.append(path.name)
            except FileNotFoundError:
                continue
        return found
