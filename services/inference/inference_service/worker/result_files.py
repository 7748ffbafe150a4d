"""The results of a prediction in the making: lines that are appended, and how far they are known to be on disk.

`position.json` is written after what it tells of is on disk. An attempt that follows on a killed one cuts off what
came behind and goes on there, so that no sample is lost and none is there twice.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inference_service.storage.specs import (
    INDEX_ENTRY_BYTES,
    INDEX_FILE,
    INDEX_STEP,
    MAX_LINE_BYTES,
    RESULT_FILE,
    write_json,
)

POSITION_FILE = "position.json"
MAX_REASON = 500
MAX_UNREADABLE = 100
_NAMES = ("sampleId", "sampleId1", "sampleId2", "file")


@dataclass
class Position:
    """How much is done. `entry` is the byte of the manifest at which the line of the last file begins, `rows` how many
    samples of that file are done; `lines` and `bytes` count results."""

    entry: int = 0
    rows: int = 0
    samples: int = 0
    lines: int = 0
    bytes: int = 0
    best: dict[str, Any] | None = None
    has_vectors: bool = False
    has_boxes: bool = False
    unreadable_count: int = 0
    unreadable: list[str] = field(default_factory=list)
    # What was wrong with the first of them.
    reason: str = ""


class ResultFiles:
    """Below `folder`: drafts that grow, and the published files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.position = self._read_position()
        self.is_published = (folder / RESULT_FILE).exists()
        if self.is_published:
            if not (folder / POSITION_FILE).exists():
                self._count_published()
        else:
            if (folder / INDEX_FILE).exists():
                # Killed between the two names.
                (folder / INDEX_FILE).replace(folder / f"{INDEX_FILE}.part")
            self._results = self._open(f"{RESULT_FILE}.part", self.position.bytes)
            entries = -(-self.position.lines // INDEX_STEP)
            self._index = self._open(f"{INDEX_FILE}.part", entries * INDEX_ENTRY_BYTES)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Results in their order; they count once `checkpoint` returned. One that nobody could be sent is an error."""
        position = self.position
        for row in rows:
            if position.lines % INDEX_STEP == 0:
                self._index.write(struct.pack("<Q", position.bytes))
            line = _line(row)
            if len(line) > MAX_LINE_BYTES:
                words = f"its result has {len(line)} bytes as text; at most {MAX_LINE_BYTES} are kept"
                row = {**{key: row[key] for key in _NAMES if key in row}, "error": words}
                line = _line(row)
            self._results.write(line)
            position.lines += 1
            position.bytes += len(line)
            self._note(row)

    def checkpoint(self) -> None:
        """Make durable what was appended, and then how far it is."""
        for stream in (self._results, self._index):
            stream.flush()
            os.fsync(stream.fileno())
        write_json(self._folder / POSITION_FILE, asdict(self.position))

    def publish(self) -> None:
        """Give the files their names, the index first: whoever finds results finds it, too."""
        if self.is_published:
            return
        self.checkpoint()
        self.close()
        (self._folder / f"{INDEX_FILE}.part").replace(self._folder / INDEX_FILE)
        (self._folder / f"{RESULT_FILE}.part").replace(self._folder / RESULT_FILE)
        self.is_published = True

    def close(self) -> None:
        """What was not published is there for the next attempt."""
        if not self.is_published:
            self._results.close()
            self._index.close()

    def _note(self, row: Mapping[str, Any]) -> None:
        position = self.position
        if "error" in row:
            position.unreadable_count += 1
            position.reason = position.reason or str(row["error"])[:MAX_REASON]
            if len(position.unreadable) < MAX_UNREADABLE:
                position.unreadable.append(row.get("sampleId") or f"{row['sampleId1']}, {row['sampleId2']}")
        elif "vector" in row:
            position.has_vectors = True
        elif row.get("scores"):
            position.has_boxes = position.has_boxes or "bbox" in row["scores"][0]
        if position.best is None and row.get("scores"):
            best = row["scores"][0]
            position.best = {
                "sample": row["sampleId"],
                "index": best["index"],
                "label": best["label"],
                "probability": best["prob"],
            }

    def _count_published(self) -> None:
        """What is reported is known from the results themselves."""
        position = self.position
        with (self._folder / RESULT_FILE).open("rb") as stream:
            for line in stream:
                row = json.loads(line)
                position.lines += 1
                position.bytes += len(line)
                position.samples += 2 if "sampleId1" in row else 1
                self._note(row)

    def _read_position(self) -> Position:
        try:
            return Position(**json.loads((self._folder / POSITION_FILE).read_text()))
        except FileNotFoundError:
            return Position()

    def _open(self, name: str, size: int) -> Any:
        stream = (self._folder / name).open("ab")
        # Grown to the size it would hide that something is missing.
        if stream.tell() < size:
            raise OSError(f"{name} has {stream.tell()} bytes, {size} were written")
        stream.truncate(size)
        return stream


def _line(row: Mapping[str, Any]) -> bytes:
    # allow_nan: what is not finite is not JSON either, and nobody could read the file.
    return (json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n").encode()
