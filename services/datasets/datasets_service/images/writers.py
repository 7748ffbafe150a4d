"""Where ready records go: an LMDB environment a split, or TFRecord files.

A writer appends parts in the order of the manifest. What it appended is durable after `checkpoint`, whose answer it can
be given later, in another process, to go on from there.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import lmdb
from recordkit.tfrecord import index_file

from datasets_service.images.manifest import Part
from datasets_service.images.parts import MAX_KEY_NAME_BYTES, EncodedPart

PAGE_BYTES = 4096
LEAST_MAP_BYTES = 16 * 1024 * 1024
COPY_BYTES = 16 * 1024 * 1024


class Writer(ABC):
    """Appends parts below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def resume(self, state: Mapping[str, Any], following: Part) -> None:
        """Go on after what `checkpoint` said; an empty state is the beginning. `following` is appended next."""

    @abstractmethod
    def append(self, encoded: EncodedPart) -> None:
        """Add the records of a part."""

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """Make all that was appended durable; what `resume` needs, JSON-serialisable."""

    @abstractmethod
    def close(self) -> None:
        """After the last checkpoint."""


class LmdbWriter(Writer):
    """Keys begin with the position, so records come at the end of the tree. One transaction a checkpoint: its pages
    are in memory until then."""

    def __init__(self, folder: Path, images: Mapping[str, int], record_bytes: int) -> None:
        super().__init__(folder)
        # A large record takes whole pages; address space costs nothing, the file is as long as it is filled.
        pages = -(-(record_bytes + MAX_KEY_NAME_BYTES + 64) // PAGE_BYTES) + 1
        self._map_bytes = {
            split: LEAST_MAP_BYTES + count * pages * PAGE_BYTES * 5 // 4 for split, count in images.items()
        }
        self._split = ""
        self._environment: lmdb.Environment | None = None
        self._transaction: lmdb.Transaction | None = None

    def resume(self, state: Mapping[str, Any], following: Part) -> None:
        # A commit may have been durable when the kill came before the manifest's: those records come again.
        with self._begin(following.split, keep=True).cursor() as cursor:
            found = cursor.set_range(b"%08d_" % following.images[0].number)
            while found:
                found = cursor.delete()

    def append(self, encoded: EncodedPart) -> None:
        if not encoded.places:
            return
        transaction = self._begin(encoded.part.split)
        with Path(encoded.file).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            with memoryview(content) as records:
                offset = 0
                for key_bytes, record_bytes in encoded.places:
                    middle = offset + key_bytes
                    with records[middle : middle + record_bytes] as record:
                        transaction.put(content[offset:middle], record, append=True)
                    offset = middle + record_bytes

    def checkpoint(self) -> dict[str, Any]:
        if self._transaction is not None:
            self._transaction.commit()
            self._transaction = None
        return {}

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _begin(self, split: str, *, keep: bool = False) -> lmdb.Transaction:
        if split != self._split:
            self.checkpoint()
            self.close()
            folder = self.folder / split
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            # Nobody reads before it is published: no lock file.
            self._environment = lmdb.open(str(folder), map_size=self._map_bytes[split], lock=False)
            self._split = split
        if self._transaction is None:
            assert self._environment is not None
            self._transaction = self._environment.begin(write=True)
        return self._transaction


class TFRecordWriter(Writer):
    """Records are framed already and only copied; an index for readers that jump is written beside."""

    def __init__(self, folder: Path, labels: list[str], *, by_class: bool) -> None:
        super().__init__(folder)
        self._labels, self._by_class = labels, by_class
        self._name = ""
        self._records: BinaryIO | None = None
        self._index: BinaryIO | None = None

    def resume(self, state: Mapping[str, Any], following: Part) -> None:
        # Files that come later are begun anew when their turn comes.
        if name := state.get("name"):
            self._name = name
            self._records = self._open(self.folder / name, state["records_bytes"])
            self._index = self._open(index_file(self.folder / name), state["index_bytes"])

    def append(self, encoded: EncodedPart) -> None:
        name = f"{encoded.part.split}/{self._file_name(encoded.part)}"
        if name != self._name:
            self.checkpoint()
            self.close()
            self._name = name
            self._records = self._open(self.folder / name, 0)
            self._index = self._open(index_file(self.folder / name), 0)
        assert self._records is not None
        assert self._index is not None
        offset = self._records.tell()
        with Path(encoded.file).open("rb") as records:
            shutil.copyfileobj(records, self._records, COPY_BYTES)
        for _, record_bytes in encoded.places:
            self._index.write(b"%d %d\n" % (offset, record_bytes))
            offset += record_bytes

    def checkpoint(self) -> dict[str, Any]:
        if self._records is None or self._index is None:
            return {}
        for file in (self._records, self._index):
            file.flush()
            os.fsync(file.fileno())
        return {"name": self._name, "records_bytes": self._records.tell(), "index_bytes": self._index.tell()}

    def close(self) -> None:
        for file in (self._records, self._index):
            if file is not None:
                file.close()
        self._records = self._index = None

    def _file_name(self, part: Part) -> str:
        which = f"{part.shard:05d}-of-{part.shards:05d}.tfrecord"
        if not self._by_class:
            return f"{part.split}-{which}"
        label = re.sub(r"[^\w.-]+", "_", self._labels[part.section])[:80]
        return f"{part.split}-{part.section:05d}-{label}-{which}"

    @staticmethod
    def _open(path: Path, size: int) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not size:
            return path.open("wb")
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file
