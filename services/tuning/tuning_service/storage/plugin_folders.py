"""Copies of the algorithms that users installed: `$DLMESH_HOME/algorithms/UID`, whole or not there at all."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from servicekit.archives import ArchiveLimits, unpack
from servicekit.errors import ServiceError, invalid, renamed
from servicekit.folders import copy_file, remove_folder, sync_folder
from servicekit.paths import DataRoots, check_length
from servicekit.plain_folders import copy_plain_folder

from tuning_service.usecases.ports import InstalledAlgorithm

PROGRAM = "optimizer.py"
LIMITS = ArchiveLimits(members=10_000, size_bytes=1024**3, depth=20)
# A draft, or a folder without a row, that is older than this is nobody's.
ORPHAN_SECONDS = 24 * 3600.0
_DRAFT, _OLD = ".draft-", ".old-"
_LEFT_OUT = "__pycache__"


class DiskPluginFolders:
    """`usecases.ports.PluginFolders` below `home`/algorithms."""

    def __init__(
        self,
        home: Path,
        data_roots: Sequence[Path],
        limits: ArchiveLimits = LIMITS,
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> None:
        self._root, self._data_roots = home / "algorithms", DataRoots(data_roots)
        self._limits, self._orphan_seconds = limits, orphan_seconds

    def folder_of(self, algorithm: InstalledAlgorithm) -> Path:
        """Where its files are."""
        return self._root / algorithm.uid

    def python_of(self, algorithm: InstalledAlgorithm) -> str:
        """The interpreter that it runs in, empty for our own; 400 when there is none where it should be."""
        home, environment = algorithm.conda_home, algorithm.conda_environment
        if not home and not environment:
            return ""
        for field, text in (("condaHome", home), ("condaEnv", environment)):
            check_length(field, text)
            if "\0" in text:
                raise invalid(field, text, "a path without zero bytes")
        if Path(environment).is_absolute():
            field, text, folder = "condaEnv", environment, Path(environment)
        elif not Path(home).is_absolute():
            raise invalid("condaHome", home, "the absolute path of a folder with bin/python")
        elif environment:
            if len(Path(environment).parts) != 1 or environment == "..":
                raise invalid("condaEnv", environment, "the name of an environment in condaHome/envs, or its folder")
            field, text, folder = "condaEnv", environment, Path(home, "envs", environment)
        else:
            field, text, folder = "condaHome", home, Path(home)
        python = folder / "bin" / "python"
        try:
            is_there = python.is_file() and os.access(python, os.X_OK)
        except OSError:
            is_there = False
        if not is_there:
            raise invalid(field, text, f"an environment; there is no {python}")
        return str(python)

    def install(self, algorithm: InstalledAlgorithm, upload: Path | None) -> None:
        self.python_of(algorithm)
        source = self._data_roots.resolve("path", algorithm.path) if upload is None else upload
        self._root.mkdir(parents=True, exist_ok=True)
        draft = self._root / f"{_DRAFT}{algorithm.uid}"
        draft.mkdir()
        try:
            if upload is not None:
                self._unpack(upload, draft / "files", "file", upload.name)
            elif source.is_dir():
                copy_plain_folder(source, draft / "files", self._limits, "path", left_out=(_LEFT_OUT,))
            else:
                self._unpack(self._copied(source, draft / "archive"), draft / "files", "path", algorithm.path)
            self._with_program(draft / "files", "file" if upload else "path").rename(self.folder_of(algorithm))
            sync_folder(self._root)
        finally:
            remove_folder(draft)

    def remove(self, uid: str) -> None:
        folder, old = self._root / uid, self._root / f"{_OLD}{uid}"
        # Gone at once for whoever looks.
        if folder.exists():
            folder.rename(old)
            sync_folder(self._root)
        if old.exists():
            remove_folder(old)

    def orphans(self) -> Sequence[str]:
        """Names of old folders, which may be nobody's; `remove_orphan` removes one."""
        now = time.time()
        found = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            try:
                if now - path.lstat().st_mtime >= self._orphan_seconds:
                    found.append(path.name.removeprefix(_DRAFT).removeprefix(_OLD))
            except FileNotFoundError:
                continue
        return sorted(set(found))

    def remove_orphan(self, name: str) -> None:
        """Remove what is left of an algorithm that has no row."""
        for prefix in ("", _DRAFT, _OLD):
            path = self._root / f"{prefix}{name}"
            if path.exists():
                remove_folder(path)

    def _unpack(self, archive: Path, target: Path, field: str, shown: str) -> None:
        try:
            if not unpack(archive, target, self._limits):
                raise invalid(field, shown, f"a folder or a tar with {PROGRAM} at its top")
        except ServiceError as error:
            if error.metadata.get("field") == field:
                raise
            raise renamed(error, field) from error

    def _copied(self, source: Path, target: Path) -> Path:
        """A copy of an archive, which nobody can change while it is read."""
        facts = source.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise invalid("path", str(source), f"a folder or a tar with {PROGRAM} at its top")
        if facts.st_size > self._limits.size_bytes:
            raise invalid("path", str(source), f"an archive of at most {self._limits.size_bytes} bytes")
        copy_file(source, target)
        return target

    def _with_program(self, files: Path, field: str) -> Path:
        """The folder that has the program: this one, or the only one in it."""
        top = [path for path in files.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        for folder in (files, *(path for path in top if len(top) == 1 and path.is_dir())):
            if (folder / PROGRAM).is_file():
                return folder
        names = ", ".join(sorted(path.name for path in top)[:10]) or "nothing"
        raise invalid(field, f"({names})", f"a folder or a tar with {PROGRAM} at its top")
