"""TFRECORDS: record files that are there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from recordkit.record_files import record_files

from datasets_service.importers.base import ImportWork
from datasets_service.importers.registered import RecordsImporter

if TYPE_CHECKING:
    from datasets_service.registered.scan import Scan


class TFRecordsImporter(RecordsImporter):
    """A split is a record file, or a folder of them."""

    def missing_in(self, path: Path) -> str:
        if record_files(path):
            return ""
        return "a TFRecord file, or a folder of files called *.tfrecord, *.tfrecords, *.record or *-00000-of-00004"

    def size_bytes(self, path: Path) -> int:
        return sum(file.stat().st_size for file in record_files(path))

    def scan(self, work: ImportWork, path: Path, progress: Callable[[int], None]) -> Scan:
        from datasets_service.registered.scan import scan_apart
        from datasets_service.registered.tfrecord_scan import scanner

        return scan_apart(scanner(work.data_roots), path, progress)
