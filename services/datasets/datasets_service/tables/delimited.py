"""Delimited text from a source: a row at a time, whatever the file holds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datasets_service.importers.base import ImportRefusedError
from datasets_service.sources.confined import SourceFileError, open_inside
from datasets_service.tables.cells import is_number

SUFFIXES = (".csv", ".tsv", ".txt")
MAX_COLUMNS = 100_000
MAX_ROW_BYTES = 8 * 1024 * 1024
MAX_CELL_CHARACTERS = 1024 * 1024
# Where several would do, a comma is the likeliest to be a part of cells.
DELIMITERS = "\t;|,"
_SAMPLE_BYTES = 256 * 1024
_SAMPLE_ROWS = 100
_PROGRESS_ROWS = 1000
_BOM = b"\xef\xbb\xbf"
_REASONS = {
    "field larger": f"a cell is longer than {MAX_CELL_CHARACTERS} characters (does a quoted cell not end?)",
    "new-line": "a carriage return inside a line; lines end with LF or CRLF",
    "unexpected end": "a quoted cell does not end",
}


@dataclass(frozen=True)
class Part:
    """Some rows of a table, as text. `origin` says where they come from."""

    origin: str
    columns: list[str]
    rows: Iterator[list[str]]


def table_files(folder: Path) -> Iterator[Path]:
    """The files of tables that lie in `folder`, in no order."""
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def printable(text: object) -> str:
    """Without what cannot be sent as UTF-8: file names may be any bytes."""
    return str(text).encode(errors="backslashreplace").decode()


def read_parts(
    source: Path, data_roots: Sequence[Path], progress: Callable[[int], None] = lambda _: None
) -> Generator[Part, None, None]:
    """A part for every file of `source` (a file, or a folder of them by name); `progress` is told bytes read so far.

    ImportRefusedError names the file and the line, or the byte, of the first thing that is wrong.
    """
    try:
        files = sorted(table_files(source)) if source.is_dir() else [source]
    except OSError as error:
        raise ImportRefusedError(f"{source} cannot be read: {error.strerror}") from error
    if not files:
        raise ImportRefusedError(f"{source} has no file ending with {', '.join(SUFFIXES)}")
    before = 0
    for path in files:
        name = printable(path)
        try:
            file = open_inside(path, data_roots)
        except SourceFileError as error:
            raise ImportRefusedError(f"{name} {error}") from error
        with file:
            yield _read_part(name, file, lambda done, before=before: progress(before + done))  # type: ignore[misc]
            before += file.tell()


def _read_part(name: str, file: BinaryIO, progress: Callable[[int], None]) -> Part:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    rows = _rows(_Lines(name, file), progress)
    _, first = next(rows, (0, []))
    if not first:
        raise ImportRefusedError(f"{name} is empty")
    if len(first) > MAX_COLUMNS:
        raise ImportRefusedError(f"{name} has {len(first)} columns; at most {MAX_COLUMNS} are possible")
    if all(map(is_number, first)):
        columns = [str(number) for number in range(len(first))]
        return Part(name, columns, _of_length(name, len(first), "the first row", rows, first))
    return Part(name, first, _of_length(name, len(first), "the header", rows))


def _of_length(
    name: str, length: int, like: str, rows: Iterator[tuple[int, list[str]]], first: list[str] | None = None
) -> Iterator[list[str]]:
    if first is not None:
        yield first
    for line, row in rows:
        if len(row) != length:
            raise ImportRefusedError(f"{name}, line {line}: {len(row)} cells, {like} has {length}")
        yield row


class _Lines:
    """Lines of a file as text. `offset` counts the bytes before the next line, `row_offset` those before its row."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self.file = name, file
        self.offset = self.row_offset = 0

    def __iter__(self) -> Iterator[str]:
        number = 0
        while line := self.file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if self.offset + len(line) - self.row_offset > MAX_ROW_BYTES:
                reason = f"a row is longer than {MAX_ROW_BYTES} bytes (does a quoted cell not end?)"
                raise ImportRefusedError(f"{self.name}, line {number}: {reason}")
            start = len(_BOM) if self.offset == 0 and line.startswith(_BOM) else 0
            try:
                text = line[start:].decode() if start else line.decode()
            except UnicodeDecodeError as error:
                byte = self.offset + start + error.start
                raise ImportRefusedError(f"{self.name}, byte {byte}: not UTF-8 ({error.reason})") from error
            if "\0" in text:
                raise ImportRefusedError(f"{self.name}, line {number}: a NUL character")
            self.offset += len(line)
            yield text


def _rows(lines: _Lines, progress: Callable[[int], None]) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, from 1, cells) of every row; blank lines are passed over."""
    line = 1
    try:
        reader = csv.reader(lines, delimiter=sniff_delimiter(lines.file), strict=True)
        for count, row in enumerate(reader):
            if count % _PROGRESS_ROWS == 0:
                progress(lines.offset)
            if row:
                yield line, row
            lines.row_offset, line = lines.offset, reader.line_num + 1
    except OSError as error:
        raise ImportRefusedError(f"{lines.name} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        reason = next((text for start, text in _REASONS.items() if str(error).startswith(start)), str(error))
        raise ImportRefusedError(f"{lines.name}, line {line}: {reason}") from error
    progress(lines.offset)


def sniff_delimiter(file: BinaryIO) -> str:
    """The delimiter that gives most of the first rows as many cells as the very first; `file` is at its start again."""
    sample = file.read(_SAMPLE_BYTES)
    file.seek(0)
    lines = sample.removeprefix(_BOM).decode(errors="replace").splitlines(keepends=True)
    if len(sample) == _SAMPLE_BYTES and len(lines) > 1:
        lines.pop()
    best, best_share = ",", 0.0
    for delimiter in DELIMITERS:
        lengths = _row_lengths(lines, delimiter)
        if lengths and lengths[0] > 1 and (share := lengths.count(lengths[0]) / len(lengths)) > best_share:
            best, best_share = delimiter, share
    return best


def _row_lengths(lines: list[str], delimiter: str) -> list[int]:
    lengths: list[int] = []
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            if row:
                lengths.append(len(row))
            if len(lengths) == _SAMPLE_ROWS:
                break
    except csv.Error:
        pass
    return lengths
