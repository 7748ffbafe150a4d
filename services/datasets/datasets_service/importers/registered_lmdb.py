"""LMDB: environments that are there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_service.importers.base import ImportRefusedError, ImportWork
from datasets_service.importers.registered import RecordsImporter

if TYPE_CHECKING:
    from datasets_service.registered.scan import Scan


class LmdbImporter(RecordsImporter):
    """A split is a folder with data.mdb, or such a file."""

    def missing_in(self, path: Path) -> str:
        return "" if path.is_file() or (path / "data.mdb").is_file() else "an LMDB: a folder with data.mdb, or its file"

    def size_bytes(self, path: Path) -> int:
        return (path if path.is_file() else path / "data.mdb").stat().st_size

    def scan(self, work: ImportWork, path: Path, progress: Callable[[int], None]) -> Scan:
        from datasets_service.registered.lmdb_scan import scan_lmdb
        from datasets_service.registered.scan import scan_apart

        file = path if path.is_file() else path / "data.mdb"
        if not any(file.resolve().is_relative_to(root) for root in work.data_roots):
            raise ImportRefusedError(f"{file} is a link that leaves the data roots")
        return scan_apart(scan_lmdb, path, progress)
