"""Uploads of studies, which the tuning service keeps below `$DLMESH_HOME/tuning`."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from servicekit.errors import invalid
from servicekit.paths import check_length
from workerkit.spool import open_plain_below

from scheduling_service.usecases.exec_ports import Upload, UploadedFile

FOLDER = "tuning"
_COPY_BYTES = 1024 * 1024


class DiskStoredUploads:
    """`usecases.exec_ports.StoredUploads` below `home`."""

    def __init__(self, home: Path, max_bytes: int) -> None:
        self._home, self._max_bytes = home, max_bytes

    def at(self, path: str, name: str) -> Upload:
        if not path:
            return _NoUpload()
        check_length("file", path)
        file, root = self._home / path, self._home / FOLDER
        # By its text; links are not followed when it is read.
        if "\0" in path or ".." in file.parts or not file.is_relative_to(root) or file == root:
            raise invalid("file", path, f"a plain file below {FOLDER}, relative to the platform's home")
        return _StoredUpload(root, file, path, name.replace("\\", "/").rpartition("/")[2], self._max_bytes)


class _NoUpload:
    async def save(self, folder: Path) -> UploadedFile | None:
        return None

    async def discard(self) -> None:
        pass


@dataclass(frozen=True)
class _StoredUpload:
    root: Path
    file: Path
    shown: str
    name: str
    max_bytes: int

    async def save(self, folder: Path) -> UploadedFile | None:
        return UploadedFile(await asyncio.to_thread(self._copy, folder), self.name)

    async def discard(self) -> None:
        pass

    def _copy(self, folder: Path) -> Path:
        try:
            reader = open_plain_below(self.root, self.file)
        except OSError as error:
            raise invalid("file", self.shown, f"a plain file that can be read ({error.strerror})") from error
        folder.mkdir()
        copy = folder / "part"
        with reader, copy.open("xb") as writer:
            # Only what is unpacked of it lasts.
            shutil.copyfileobj(reader, writer, _COPY_BYTES)
            if writer.tell() > self.max_bytes:
                raise invalid("file", self.shown, f"at most {self.max_bytes} bytes")
            if not writer.tell():
                raise invalid("file", self.shown, "a file that is not empty")
        return copy
