"""CSV datasets for torch: rows by their numbers, read where they lie, and the tensors that become of them.

`Table` opens the split of a CSV dataset, or any CSV file with commas, UTF-8 and a header. Its rows may be more than fit
into memory: a file is mapped, and 16 bytes are kept for each row. `TableEncoding.fit` learns from the training rows how
cells become numbers; `TableDataset` applies that to any rows with the same columns. An encoding belongs to the weights
that were learned with it: `to_json` is for the file beside them.
"""

from __future__ import annotations

import csv
import json
import math
import mmap
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from workerkit.heartbeat import heartbeat_of_the_only_rank

from dlmesh_sdk.wrong_data import WrongDataError

DATA, COLUMNS = "data.csv", "columns.json"
# As many as an import lets through.
MAX_CELL_CHARACTERS = 1024 * 1024
# The most frequent texts of a column are told apart, if they occur twice and are no longer; all others are one.
MAX_VALUES = 1000
MAX_VALUE_CHARACTERS = 200
MAX_LABELS = 10_000
# Texts that are counted at most; what comes first beyond them is frequent only by accident.
_MAX_COUNTED = 100_000
# A column of whole numbers with at most so many different ones holds classes.
MAX_NUMBERED_CLASSES = 20
# Standardised numbers further away are brought so near: one wrong cell must not drown a batch.
FURTHEST = 10.0
# Those to be learned are not changed where it matters; their squares must still be numbers.
_FURTHEST_TARGET = 1e15
# Numbers that differ by a smaller part of their mean differ by rounding.
_ROUNDING = 1e-12
# As an import tells numbers from texts that would lose by it: 007, +49, 1_000.
_NUMBER = re.compile(r" *-?(?:(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?:0|[1-9][0-9]*)\.) *")
_CHUNK_BYTES = 16 * 1024 * 1024
_CHUNK_ROWS = 4096
_QUOTE, _LF, _CR = b'"\n\r'
_BOM = b"\xef\xbb\xbf"

# In the place of a label's index.
UNKNOWN = -1
KINDS = ("classification", "regression")


@dataclass(frozen=True)
class Column:
    """One column; a cell of a column of numbers is a finite number or empty."""

    name: str
    is_number: bool


class Table:
    """Rows as lists of cells, by their numbers from 0; a row may be read from any process.

    `path` is a CSV file, or the folder of a split of a CSV dataset. `columns` have the types that the import found (a
    file that was not imported is read once for them, unless `has_types` is false: then all are texts, and a wrong row
    is found when it is read). ValueError when it is no table, WrongDataError when there is no file.
    """

    def __init__(self, path: str | Path, *, has_types: bool = True) -> None:
        self.path = Path(path) / DATA if Path(path).is_dir() else Path(path)
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._map: mmap.mmap | None = None
        try:
            self._starts, self._ends = _find_rows(self.path)
        except OSError as error:
            needed = f"a table is needed, and this is no CSV file and no split of a CSV dataset ({error.strerror})"
            raise WrongDataError(needed, path) from error
        if not len(self._starts):
            raise ValueError(f"{self.path} is empty; a table begins with the names of its columns")
        if not len(self):
            raise ValueError(f"{self.path} has the names of columns, but no rows")
        names = self._cells(0)
        if len(set(names)) < len(names):
            raise ValueError(f"{self.path} has columns of the same name: {', '.join(sorted(names))}")
        self.columns = tuple(Column(name, False) for name in names)
        if has_types:
            are_numbers = _known_types(self.path.parent.parent / COLUMNS, names) or self._find_types()
            self.columns = tuple(map(Column, names, are_numbers))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> list[str]:
        number = range(len(self))[index]
        cells = self._cells(number + 1)
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.at(number)}: {len(cells)} cells, the header has {len(self.columns)}")
        return cells

    def __iter__(self) -> Iterator[list[str]]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file stays in its process.
        return {**self.__dict__, "_map": None}

    def position(self, name: str) -> int:
        """Where the column is in a row; ValueError lists the columns there are."""
        for position, column in enumerate(self.columns):
            if column.name == name:
                return position
        names = ", ".join(repr(column.name) for column in self.columns[:50])
        raise ValueError(f"{self.path} has no column {name!r}; its columns are {names}")

    def names(self) -> list[str]:
        """What results call the rows: their numbers."""
        return [str(number) for number in range(len(self))]

    def at(self, row: int) -> str:
        """How errors call a row."""
        return f"{self.path}, row {row}"

    def chunks(self) -> Iterator[list[list[str]]]:
        """All rows, some thousand at a time, in their order."""
        for start in range(0, len(self), _CHUNK_ROWS):
            heartbeat_of_the_only_rank()
            yield [self[number] for number in range(start, min(start + _CHUNK_ROWS, len(self)))]

    def _cells(self, line: int) -> list[str]:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            text = self._map[self._starts[line] : self._ends[line]].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.at(line - 1)}: not UTF-8 ({error.reason})") from error
        if '"' not in text:
            return text.rstrip("\r\n").split(",")
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise ValueError(f"{self.at(line - 1)}: {error}") from error

    def _find_types(self) -> list[bool]:
        are_numbers = [True] * len(self.columns)
        for rows in self.chunks():
            for position, cells in enumerate(zip(*rows, strict=True)):
                are_numbers[position] = are_numbers[position] and all(map(_is_number_or_empty, cells))
        return are_numbers


@dataclass(frozen=True)
class Target:
    """What is predicted: one of `labels`, or, where there are none, a number around `mean`."""

    name: str
    is_number: bool
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(cls, table: Table, name: str = "", kind: str = "") -> Target:
        """From the training rows; arguments as for `TableEncoding.fit`."""
        position = table.position(name) if name else len(table.columns) - 1
        values = _TargetValues(table, position, kind)
        for rows in table.chunks():
            values.add([row[position] for row in rows])
        return values.found()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Target:
        """What `to_json` wrote."""
        return cls(**{**content, "labels": tuple(content["labels"])})

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json`."""
        return {**self.__dict__, "labels": list(self.labels)}

    def value(self, cell: str) -> str | float:
        """The label or the number that a cell means. 3 and 3.0 are one label where the column has numbers."""
        if not cell:
            raise ValueError(f"column {self.name!r}, which is to be predicted, is empty")
        if not self.is_number:
            return cell
        number = _number(self.name, cell)
        return _number_text(cell) if self.labels else number

    def truth(self, table: Table) -> list[str | float]:
        """The values of all rows; ValueError names the row that has none."""
        position = table.position(self.name)
        return [_in_row(table, number, self.value, row[position]) for number, row in enumerate(table)]

    def encode(self, cell: str, indices: Mapping[str, int], *, takes_unknown: bool = False) -> int | Tensor:
        """The index of a label, or the standardised number as float32 [1]. `indices` are those of `labels`; ValueError
        for another label, unless it may be UNKNOWN."""
        value = self.value(cell)
        if isinstance(value, str):
            if value not in indices:
                if takes_unknown:
                    return UNKNOWN
                raise ValueError(f"column {self.name!r}: label {value[:50]!r} is not known from training rows")
            return indices[value]
        standard = (value - self.mean) / self.deviation
        return torch.tensor([max(-_FURTHEST_TARGET, min(standard, _FURTHEST_TARGET))], dtype=torch.float32)


class TableRows(Dataset[tuple[Any, Any]]):
    """(inputs, target) of each row; targets are an index, a standardised number [1], or UNKNOWN if not `has_target`."""

    def __init__(self, table: Table, target: Target, has_target: bool = True) -> None:
        self.table, self.target, self.has_target = table, target, has_target
        self._position = table.position(target.name) if has_target else -1
        self._labels = {label: index for index, label in enumerate(target.labels)}
        self._takes_unknown = False

    def with_unknown_labels(self) -> Self:
        """These rows, for a test: labels that no training row had are no error but UNKNOWN, which nothing can meet."""
        self._takes_unknown = True
        return self

    @abstractmethod
    def inputs(self, cells: Sequence[str]) -> Any:
        """What a row is for the model; ValueError names the column that is wrong."""

    def collate(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Tensor]:
        """Samples as a batch of inputs and targets."""
        inputs, targets = default_collate(samples)
        return inputs, targets

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        heartbeat_of_the_only_rank()
        cells = self.table[index]
        return _in_row(self.table, range(len(self))[index], self._sample, cells)

    def _sample(self, cells: list[str]) -> tuple[Any, Any]:
        if not self.has_target:
            return self.inputs(cells), UNKNOWN
        target = self.target.encode(cells[self._position], self._labels, takes_unknown=self._takes_unknown)
        return self.inputs(cells), target


@dataclass(frozen=True)
class TableEncoding:
    """How a row becomes tensors. `numbers` are name, mean and deviation of columns, `texts` name and known values."""

    target: Target
    numbers: tuple[tuple[str, float, float], ...] = ()
    texts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def fit(cls, table: Table, target: str = "", kind: str = "") -> TableEncoding:
        """Learn it from the training rows: one pass, memory for the values of text columns only.

        `target` is a column (the last one when empty). `kind` is classification or regression; when it is empty, text
        and up to 20 different whole numbers are classes. ValueError says what is wrong with either.
        """
        position = table.position(target) if target else len(table.columns) - 1
        inputs = [number for number in range(len(table.columns)) if number != position]
        if not inputs:
            raise ValueError(f"{table.path} has no column but {table.columns[position].name!r}, which is the target")
        moments = {number: _Moments() for number in inputs if table.columns[number].is_number}
        counts: dict[int, Counter[str]] = {number: Counter() for number in inputs if number not in moments}
        targets = _TargetValues(table, position, kind)
        for rows in table.chunks():
            columns = list(zip(*rows, strict=True))
            for number, of_column in moments.items():
                of_column.add(columns[number])
            for number, of_values in counts.items():
                _count(of_values, (cell for cell in columns[number] if len(cell) <= MAX_VALUE_CHARACTERS))
            targets.add(columns[position])
        return cls(
            target=targets.found(),
            numbers=tuple((table.columns[number].name, *found.standard()) for number, found in moments.items()),
            texts=tuple((table.columns[number].name, _most_common(found)) for number, found in counts.items()),
        )

    @property
    def task(self) -> str:
        """As serving.json calls it."""
        return "tabular"

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of `build_model`: columns of numbers, known values of each column of text, outputs."""
        return {
            "numbers": len(self.numbers),
            "texts": [len(values) for _, values in self.texts],
            "outputs": len(self.target.labels) or 1,
        }

    def rows(self, table: Table, has_target: bool = True) -> TableDataset:
        """The rows of `table` as tensors."""
        return TableDataset(table, self, has_target)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json`."""
        return {
            "target": self.target.to_json(),
            "numbers": [list(column) for column in self.numbers],
            "texts": [[name, list(values)] for name, values in self.texts],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TableEncoding:
        """What `to_json` wrote."""
        return cls(
            target=Target.from_json(content["target"]),
            numbers=tuple((name, float(mean), float(deviation)) for name, mean, deviation in content["numbers"]),
            texts=tuple((name, tuple(values)) for name, values in content["texts"]),
        )


class TableDataset(TableRows):
    """((numbers, texts), target) of each row.

    `numbers` are float32 [2 * columns of numbers]: standardised values, 0 where a cell is empty, then 1 for each empty
    cell and 0 for the others. `texts` are int64 [columns of text], 0 for values that the encoding does not know.
    """

    def __init__(self, table: Table, encoding: TableEncoding, has_target: bool = True) -> None:
        super().__init__(table, encoding.target, has_target)
        self._numbers = [(table.position(name), name) for name, _, _ in encoding.numbers]
        self._means = np.array([mean for _, mean, _ in encoding.numbers], np.float64)
        self._deviations = np.array([deviation for _, _, deviation in encoding.numbers], np.float64)
        self._texts = [
            (table.position(name), {value: index for index, value in enumerate(values, 1)})
            for name, values in encoding.texts
        ]

    def inputs(self, cells: Sequence[str]) -> tuple[Tensor, Tensor]:
        indices = [known.get(cells[position], 0) for position, known in self._texts]
        return torch.from_numpy(self._standardised(cells)), torch.tensor(indices, dtype=torch.int64)

    def _standardised(self, cells: Sequence[str]) -> np.ndarray:
        values = np.array(
            [_number(name, cell) if (cell := cells[position]) else math.nan for position, name in self._numbers]
        )
        is_missing = np.isnan(values)
        with np.errstate(over="ignore"):
            values = np.clip((values - self._means) / self._deviations, -FURTHEST, FURTHEST)
        values[is_missing] = 0.0
        return np.concatenate([values, is_missing], dtype=np.float32)


@dataclass
class _Moments:
    """Mean and deviation of numbers that come piece by piece.

    The squares of large numbers are larger than a float64 can be.
    """

    count: int = 0
    mean: np.longdouble = field(default_factory=lambda: np.longdouble(0))
    squares: np.longdouble = field(default_factory=lambda: np.longdouble(0))

    def add(self, cells: Sequence[str]) -> None:
        values = np.array([float(cell) for cell in cells if cell], np.longdouble)
        if not len(values):
            return
        mean = values.mean()
        total, difference = self.count + len(values), mean - self.mean
        self.squares += np.square(values - mean).sum() + difference**2 * self.count * len(values) / total
        self.mean += difference * len(values) / total
        self.count = total

    def standard(self) -> tuple[float, float]:
        """Mean and deviation, which is 1 where all numbers are alike."""
        deviation = np.sqrt(self.squares / self.count) if self.count else 0
        return float(self.mean), float(deviation) if deviation > _ROUNDING * abs(self.mean) else 1.0


class _TargetValues:
    """What the column that is to be predicted holds, as far as it is needed."""

    def __init__(self, table: Table, position: int, kind: str) -> None:
        self.table, self.column, self.kind = table, table.columns[position], kind
        if kind not in ("", *KINDS):
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}, or nothing for what the column says")
        if kind == "regression" and not self.column.is_number:
            raise ValueError(f"column {self.column.name!r} holds text: that cannot be learned by regression")
        self.moments = _Moments()
        self.values: set[str] = set()
        self.rows = 0

    def add(self, cells: Sequence[str]) -> None:
        if "" in cells:
            row = self.table.at(self.rows + list(cells).index(""))
            raise ValueError(f"{row}: column {self.column.name!r}, which is to be predicted, is empty")
        self.rows += len(cells)
        if self.column.is_number:
            self.moments.add(cells)
        if self.kind != "regression" and len(self.values) <= MAX_LABELS:
            self.values.update(map(_number_text, cells) if self.column.is_number else cells)

    def found(self) -> Target:
        name, is_number = self.column.name, self.column.is_number
        if not self._are_classes():
            return Target(name, is_number, (), *self.moments.standard())
        # As many labels as rows, nearly: a name or a text, and the label is another column.
        if len(self.values) > min(MAX_LABELS, max(MAX_NUMBERED_CLASSES, self.rows // 2)):
            count = len(self.values) if len(self.values) <= MAX_LABELS else f"more than {MAX_LABELS}"
            raise ValueError(f"column {name!r} has {count} different values in {self.rows} rows: these are no labels")
        if len(self.values) < 2:
            raise ValueError(f"column {name!r} is {min(self.values)!r} in every row: there is nothing to learn")
        # By text, too: every worker must find the same order.
        labels = sorted(self.values, key=lambda label: (float(label) if is_number else 0.0, label))
        return Target(name, is_number, tuple(labels))

    def _are_classes(self) -> bool:
        if self.kind or not self.column.is_number:
            return self.kind != "regression"
        return len(self.values) <= MAX_NUMBERED_CLASSES and all(float(value).is_integer() for value in self.values)


def _find_rows(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each line that is not blank begins and ends (int64), the header's first; a quoted LF ends no line."""
    ends: list[np.ndarray] = []
    offset, quotes, last = 0, 0, b""
    with path.open("rb") as file:
        begin = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            content = np.frombuffer(chunk, np.uint8)
            places = np.flatnonzero(content == _LF)
            marks = np.flatnonzero(content == _QUOTE)
            # An LF after an odd number of quotes stands in a cell.
            is_outside = (quotes + np.searchsorted(marks, places)) % 2 == 0
            ends.append(places[is_outside] + offset + 1)
            offset, quotes, last = offset + len(chunk), (quotes + len(marks)) % 2, chunk[-1:]
            heartbeat_of_the_only_rank()
        if quotes:
            raise ValueError(f"{path}: a quoted cell does not end")
        if last not in (b"", b"\n"):
            ends.append(np.array([offset]))
        stops = np.concatenate([*ends, np.empty(0, np.int64)]).astype(np.int64)
        starts = np.concatenate([np.array([begin]), stops[:-1]]) if len(stops) else stops
        short = np.flatnonzero(stops - starts <= 2)
        blank = [
            line
            for line in short
            if not os.pread(file.fileno(), 2, starts[line])[: stops[line] - starts[line]].strip(b"\r\n")
        ]
    return np.delete(starts, blank), np.delete(stops, blank)


def _known_types(file: Path, names: Sequence[str]) -> list[bool]:
    """Whether the columns hold numbers, as an import wrote it down; nothing when it is not about these columns."""
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        return [column["type"] == "number" for column in described] if names == [c["name"] for c in described] else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _in_row(table: Table, row: int, read: Callable[[Any], Any], cells: Any) -> Any:
    try:
        return read(cells)
    except ValueError as error:
        raise ValueError(f"{table.at(row)}: {error}") from error


def _is_number_or_empty(cell: str) -> bool:
    return not cell or (_NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell)))


def _number(column: str, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in cell:
        raise ValueError(f"column {column!r}: {cell[:50]!r} is no finite number")
    return number


def _number_text(cell: str) -> str:
    # Whole numbers digit by digit: a float64 has 15 of them.
    return str(int(Decimal(cell.strip()))) if float(cell).is_integer() else repr(float(cell))


def _count(counts: Counter[str], cells: Iterable[str]) -> None:
    if len(counts) < _MAX_COUNTED:
        counts.update(cells)
    else:
        counts.update(cell for cell in cells if cell in counts)


def _most_common(counts: Counter[str]) -> tuple[str, ...]:
    # By name where equally many: every worker must find the same.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(value for value, count in ranked[:MAX_VALUES] if count > 1)
