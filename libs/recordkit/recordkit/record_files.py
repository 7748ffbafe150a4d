"""Which files of a folder are TFRecord files; imports nothing, so that a service can ask."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"\.(tfrecords?|record)$|-\d{5,}-of-\d{5,}$")


def record_files(path: Path) -> list[Path]:
    """The TFRecord files that `path` means: itself, or those of a folder (else of the folders in it) by their names.

    In a folder they are called `*.tfrecord`, `*.tfrecords`, `*.record`, or end with `-00000-of-00004`.
    """
    if path.is_file():
        return [path]
    return _named(path, "*") or _named(path, "*/*")


def _named(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if _NAME.search(file.name) and file.is_file())
