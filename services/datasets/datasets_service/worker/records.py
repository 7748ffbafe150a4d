"""Writing records to LMDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lmdb

FIRST_MAP_BYTES = 16 * 1024 * 1024


class RecordWriter:
    """A new LMDB environment; the map grows as it fills, a batch is one transaction, keys come in order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        # Nobody reads before it is published: no lock file, and one sync at the end.
        self._environment = lmdb.open(str(folder), map_size=FIRST_MAP_BYTES, lock=False, sync=False)

    def write(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Add (key, record) pairs."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, record in batch:
                        transaction.put(key, record, append=True)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(self._environment.info()["map_size"] * 2)

    def close(self) -> None:
        """Make it durable."""
        self._environment.sync(True)
        self._environment.close()
