"""What models of rows share: a module of logits or standardised numbers, and the encoding of its weights."""

from __future__ import annotations

import json
import stat
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlmesh_sdk.served.base import Encoded, Facts, Item, Served, Tensor, Unreadable, scores_of

# A text is cut behind it: no encoding looks at more.
MAX_TEXT_CHARACTERS = 1024 * 1024


class ServedRows(Served):
    """`OUTPUT__0` is FP32 [labels], probabilities, or FP64 [1], the number in the units of its column."""

    needs: ClassVar[tuple[str, ...]] = ("encoding",)

    def __init__(self, serving: Mapping[str, Any], program: Any) -> None:
        super().__init__(serving, program)
        self.encoding = self.make_encoding(serving["encoding"])
        self.labels = list(self.encoding.target.labels)
        self.columns = self.columns_of(serving["encoding"])
        # Rows of no table: they come one by one, cells in the order of `columns`.
        self.rows: Any = self.encoding.rows(_Header(self.columns), has_target=False)

    @classmethod
    @abstractmethod
    def make_encoding(cls, content: Mapping[str, Any]) -> Any:
        """What `to_json` of the encoding wrote; imports torch."""

    @classmethod
    @abstractmethod
    def columns_of(cls, encoding: Mapping[str, Any]) -> list[str]:
        """The columns that a row must have."""

    @classmethod
    @abstractmethod
    def inputs_of(cls, encoding: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The input tensors."""

    @abstractmethod
    def stack(self, samples: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
        """A batch of what `rows.inputs` made of rows."""

    @classmethod
    def facts(cls, serving: Mapping[str, Any]) -> Facts:
        labels = tuple(str(label) for label in serving["encoding"]["target"]["labels"])
        output = Tensor("OUTPUT__0", "FP32", (len(labels),)) if labels else Tensor("OUTPUT__0", "FP64", (1,))
        return Facts(cls.task, labels, cls.inputs_of(serving["encoding"]), (output,), probabilities=bool(labels))

    def items(self, file: Path, name: str) -> Iterator[Item]:
        yield from self.rows_of(file, name)

    def rows_of(self, file: Path, name: str) -> Iterator[Item]:
        """Rows of a CSV file by their columns, those that are none as Unreadable."""
        from dlmesh_sdk.table_datasets import Table

        try:
            require_file(file)
            table = Table(file, has_types=False)
        except (OSError, ValueError) as error:
            yield Item(name, Unreadable(str(error).replace(str(file), name)))
            return
        columns = [column.name for column in table.columns]
        for number in range(len(table)):
            try:
                value: Any = dict(zip(columns, table[number], strict=True))
            except ValueError as error:
                value = Unreadable(str(error).replace(str(file), name))
            yield Item(f"{name}:{number}", value)

    def item(self, content: bytes, sample_id: str = "") -> Item:
        try:
            row = json.loads(content)
            if not isinstance(row, dict):
                raise ValueError("a row is a JSON object, a value for each column")
            return Item(sample_id, {str(name): cell_of(name, value) for name, value in row.items()})
        except (ValueError, RecursionError) as error:
            return Item(sample_id, Unreadable(f"not a row: {error}"))

    def encode(self, items: Sequence[Item]) -> Encoded:
        samples: list[Any] = []
        errors: dict[str, str] = {}
        for item in items:
            try:
                samples.append(self.rows.inputs(self.cells(item.value)))
            except ValueError as error:
                errors[item.sample_id] = str(error)
        inputs = self.stack(samples) if samples else {}
        return Encoded(tuple(item.sample_id for item in items), inputs, errors)

    def cells(self, value: Any) -> list[str]:
        """A row's cells in the order of `columns`; ValueError when it is unreadable or lacks one."""
        if isinstance(value, Unreadable):
            raise ValueError(value.reason)
        if missing := [name for name in self.columns if name not in value]:
            raise ValueError(f"column {missing[0]!r} is missing; needed are {', '.join(map(repr, self.columns[:50]))}")
        return [value[name] for name in self.columns]

    def build_model(self) -> Any:
        return self.program.build_model(**self.encoding.shape)

    def answer(self, logits: Any) -> dict[str, Any]:
        """What the module's outputs mean: probabilities, or numbers in the units of the column."""
        target = self.encoding.target
        if target.labels:
            return {"OUTPUT__0": logits.float().softmax(1).cpu()}
        return {"OUTPUT__0": logits.float().cpu().double() * target.deviation + target.mean}

    def result(self, output: np.ndarray[Any, Any], size: tuple[int, int], threshold: float) -> dict[str, Any]:
        return scores_of(output, self.labels, threshold) if self.labels else {"vector": [float(v) for v in output]}


class _Header:
    """What an encoding asks of a table."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._positions = {name: position for position, name in enumerate(columns)}

    def position(self, name: str) -> int:
        return self._positions[name]


def cell_of(name: Any, value: Any) -> str:
    """A value of JSON as a CSV file has it; ValueError for what is no value."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r}: a text, a number or null is needed")
    return value if isinstance(value, str) else str(value)


def require_file(file: Path) -> None:
    """ValueError for pipes, which would be waited for, and folders."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("not a file")
