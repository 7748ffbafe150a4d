"""TFRecord files: a record is its length, a masked CRC-32C of the length, the bytes, and a masked CRC-32C of those."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
OVERHEAD_BYTES = _HEADER.size + _FOOTER.size
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # gzip, zlib


class CorruptRecordError(ValueError):
    """The file is no TFRecord file, or it was damaged; the message names file and byte."""


def frame(record: bytes) -> bytes:
    """The record as it lies in a file."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _FOOTER.pack(_masked_crc(length)), record, _FOOTER.pack(_masked_crc(record))))


def index_file(path: Path) -> Path:
    """Where an import notes the places of the records of `path`: a line `offset size` each, framing included.

    It lies beside the folder of the split, where nobody who lists record files finds it.
    """
    return path.parent.parent / "index" / path.parent.name / f"{path.name}.idx"


class TFRecordFile:
    """The records of one file, by number. The file is mapped, not read; every record is checked when it is taken."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.offsets = self._indexed_offsets()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> bytes:
        """The bytes of a record; CorruptRecordError when they were damaged."""
        offset = int(self.offsets[number])
        length = _length_at(self._map, offset, self.path)
        start = offset + _HEADER.size
        record = self._map[start : start + length]
        (crc,) = _FOOTER.unpack_from(self._map, start + length)
        if crc != _masked_crc(record):
            raise CorruptRecordError(f"{self.path}: the record at byte {offset} does not match its checksum")
        return record

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))

    def _indexed_offsets(self) -> np.ndarray:
        """uint64 [records]: from the index when it is newer and fits, from the lengths in the file otherwise."""
        index = index_file(self.path)
        try:
            if index.stat().st_mtime_ns >= self.path.stat().st_mtime_ns and index.stat().st_size:
                starts, sizes = np.loadtxt(index, np.uint64, ndmin=2, unpack=True)
                ends = np.cumsum(sizes, dtype=np.uint64)
                if np.array_equal(starts, ends - sizes) and ends[-1] == len(self._map):
                    return np.ascontiguousarray(starts)
        except (OSError, ValueError):
            pass
        return np.fromiter(_scan(self._map, self.path), np.uint64)


def _scan(content: mmap.mmap | bytes, path: Path) -> Iterator[int]:
    offset = 0
    while offset < len(content):
        yield offset
        offset += _length_at(content, offset, path) + OVERHEAD_BYTES


def _length_at(content: mmap.mmap | bytes, offset: int, path: Path) -> int:
    if offset + OVERHEAD_BYTES <= len(content):
        length, crc = _HEADER.unpack_from(content, offset)
        if crc == _masked_crc(content[offset : offset + 8]):
            if offset + OVERHEAD_BYTES + length <= len(content):
                return int(length)
            raise CorruptRecordError(f"{path}: the record at byte {offset} is cut short")
    if offset == 0 and content[:2] in _COMPRESSED:
        raise CorruptRecordError(f"{path}: compressed TFRecords cannot be read in any order; write them uncompressed")
    what = "is no TFRecord file" if offset == 0 else f"is damaged at byte {offset}"
    raise CorruptRecordError(f"{path}: {what}")


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
