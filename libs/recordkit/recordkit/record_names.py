"""What the records of a split are called, without decoding their images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from recordkit.example import ImageExample
from recordkit.lmdb_records import open_lmdb
from recordkit.record_files import record_files
from recordkit.tfrecord import TFRecordFile


def record_names(path: Path) -> list[str] | None:
    """The name of each record at `path`, in the order of the records; None when there are none.

    Those of an LMDB are its keys, those of TFRecord files the `image/filename`; all differ.
    """
    if (path / "data.mdb").exists() or path.suffix == ".mdb":
        with open_lmdb(path).begin() as transaction, transaction.cursor() as cursor:
            return [key.decode(errors="surrogateescape") for key in cursor.iternext(keys=True, values=False)]
    if files := record_files(path):
        return distinct(ImageExample.parse(record).filename for file in files for record in TFRecordFile(file))
    return None


def distinct(names: Iterable[str]) -> list[str]:
    """Names of others' files may be missing or occur twice; then `name#number`, the number being the record's."""
    found: dict[str, None] = {}
    for number, name in enumerate(names):
        if not name or name in found:
            name = f"{name}#{number}"
        found[name] = None
    return list(found)
