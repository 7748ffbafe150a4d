"""The records of a CSV dataset: `columns.json`, and for every split `data.csv` with `rows.index`.

`data.csv` has commas, a header and LF, whatever the source had. `rows.index` is pairs of unsigned 64-bit little-endian
numbers, one about every 64 KiB of rows: a row, and the byte of `data.csv` where it begins.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import re
from bisect import bisect_right
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from struct import Struct

from datasets_service.domain.table import Cell, SliceTooLargeError, TableSlice
from datasets_service.tables.cells import json_number
from datasets_service.tables.delimited import MAX_CELL_CHARACTERS

COLUMNS = "columns.json"
DATA = "data.csv"
INDEX = "rows.index"
INDEXED_BYTES = 64 * 1024
WRITTEN_BYTES = 256 * 1024
MAX_SLICE_BYTES = 2 * 1024 * 1024
MAX_SLICE_CELLS = 250_000
_ENTRY = Struct("<QQ")
# The last one, at the beginning of a file, would read as a byte order mark.
_QUOTED = re.compile('["\r\n\ufeff]')


class TableWriter:
    """Writes one split, a row at a time. `sha256` is of `data.csv`, complete when the block has ended."""

    def __init__(self, folder: Path, columns: list[str]) -> None:
        folder.mkdir(parents=True)
        self.count = 0
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = self._offset = 0
        self._indexed = -INDEXED_BYTES
        with ExitStack() as stack:
            self._data = stack.enter_context((folder / DATA).open("wb"))
            self._index = stack.enter_context((folder / INDEX).open("wb"))
            self._files = stack.pop_all()
        self._append(columns)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._files:
            self._flush()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, row: list[str]) -> None:
        """Append one row: a cell for every column."""
        if self._offset - self._indexed >= INDEXED_BYTES:
            self._index.write(_ENTRY.pack(self.count, self._offset))
            self._indexed = self._offset
        self._append(row)
        self.count += 1

    def _append(self, row: list[str]) -> None:
        line = f"{_line(row)}\n".encode()
        self._offset += len(line)
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._pending_bytes >= WRITTEN_BYTES:
            self._flush()

    def _flush(self) -> None:
        content = b"".join(self._pending)
        self._data.write(content)
        self._sha256.update(content)
        self._pending.clear()
        self._pending_bytes = 0


def _line(row: list[str]) -> str:
    line = ",".join(row)
    # A blank line would be no row to most readers.
    if line and not line.isspace() and line.count(",") == len(row) - 1 and not _QUOTED.search(line):
        return line
    return ",".join(_quoted(cell) if len(row) == 1 or "," in cell or _QUOTED.search(cell) else cell for cell in row)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def write_columns(file: Path, names: list[str], numbers: list[int]) -> None:
    """`numbers` are the positions of the columns of numbers; the others hold text."""
    are_numbers = set(numbers)
    columns = [
        {"name": name, "type": "number" if position in are_numbers else "text"} for position, name in enumerate(names)
    ]
    file.write_text(json.dumps(columns, ensure_ascii=False, indent=1), encoding="utf-8")


def read_slice(folder: Path, start: int, length: int) -> TableSlice:
    """Rows `start` to `start + length` of the split in `folder`, as many as there are; reads little more than them.

    SliceTooLargeError when they are more than MAX_SLICE_BYTES of JSON or MAX_SLICE_CELLS.
    """
    described = json.loads((folder.parent / COLUMNS).read_text(encoding="utf-8"))
    columns = [column["name"] for column in described]
    are_numbers = [column["type"] == "number" for column in described]
    head = f'{{"columns":{_json(columns)},"index":['
    rows: list[list[Cell]] = []
    texts: list[str] = []
    size = len(head.encode()) + len('],"data":[]}')
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with (folder / INDEX).open("rb") as index, (folder / DATA).open("rb") as data:
        first, offset = _entry_before(index.fileno(), start)
        data.seek(offset)
        reader = csv.reader(io.TextIOWrapper(data, encoding="utf-8", newline=""), strict=True)
        for cells in islice(reader, start - first, start - first + length):
            text = f"[{','.join(map(_json_cell, cells, are_numbers))}]"
            size += len(text.encode()) + len(f"{start + len(rows)},,")
            if size > MAX_SLICE_BYTES or (len(rows) + 1) * len(columns) > MAX_SLICE_CELLS:
                raise SliceTooLargeError(len(rows))
            rows.append([_value(*cell) for cell in zip(cells, are_numbers, strict=True)])
            texts.append(text)
    numbers = ",".join(map(str, range(start, start + len(rows))))
    return TableSlice(columns, start, rows, f'{head}{numbers}],"data":[{",".join(texts)}]}}')


class DiskTables:
    """`ports.Tables` on what imports published."""

    async def read(self, path: str, start: int, length: int) -> TableSlice:
        return await asyncio.to_thread(read_slice, Path(path).parent, start, length)


def _entry_before(index: int, row: int) -> tuple[int, int]:
    """The last entry that is not beyond `row`: a row, and its byte."""

    def entry(position: int) -> tuple[int, int]:
        first, offset = _ENTRY.unpack(os.pread(index, _ENTRY.size, position * _ENTRY.size))
        return first, offset

    count = os.fstat(index).st_size // _ENTRY.size
    return entry(bisect_right(range(count), row, key=lambda position: entry(position)[0]) - 1)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _json_cell(cell: str, is_number: bool) -> str:
    if not cell:
        return "null"
    return json_number(cell) if is_number else _json(cell)


def _value(cell: str, is_number: bool) -> Cell:
    if not cell:
        return None
    return float(cell) if is_number else cell
