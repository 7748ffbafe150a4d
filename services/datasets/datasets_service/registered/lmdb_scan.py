"""Every record of an LMDB environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recordkit.datum import Datum
from recordkit.lmdb_records import open_lmdb

from datasets_service.importers.base import ImportRefusedError
from datasets_service.registered.scan import Scan


def scan_lmdb(path: Path) -> Iterator[int | Scan]:
    """Counts Datum records by label; records of another kind are counted as unlabelled."""
    found = Scan()
    room = (path / "data.mdb" if path.is_dir() else path).stat().st_size
    try:
        environment = open_lmdb(path)
        with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            for key, value in cursor:
                found.records += 1
                room -= len(key) + len(value)
                # Damaged pages may point at each other, and the walk would never end.
                if room < 0:
                    raise ValueError("it has more records than there is room for")
                found.digest.update(b"%d %d\n" % (len(key), len(value)))
                found.digest.update(key)
                found.digest.update(value)
                _add(found, value)
                yield len(key) + len(value)
            said = transaction.stat()["entries"]
            if said != found.records:
                raise ValueError(f"it says that it has {said} records and has {found.records}")
    except Exception as error:
        raise ImportRefusedError(f"{path} cannot be read as LMDB: {error}") from error
    if not found.records:
        raise ImportRefusedError(f"{path} is an LMDB without records")
    yield found


def _add(found: Scan, value: memoryview) -> None:
    try:
        datum = Datum.parse(value)
        if not datum.encoded and datum.channels * datum.height * datum.width != len(datum.data):
            raise ValueError("pixels and size differ")
    except ValueError:
        found.unlabelled += 1
        return
    found.add_image(datum.width, datum.height, datum.channels)
    if datum.vector:
        found.unlabelled += 1
    else:
        found.labels[datum.label] += 1
