"""The search space: which values a parameter may have, and how algorithms see them.

Algorithms know nothing of names, types, steps and powers. They work on places: one coordinate a dimension, a number
from 0 to 1 where any value between two ends will do, else the index of one of finitely many values. That is what gives
both ends of a range their full weight, keeps grids exact, and lets two places be compared.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

Value = int | float | str
Coordinate = int | float
Place = tuple[Coordinate, ...]


class DataType(StrEnum):
    """What a program reads a parameter as."""

    INT = "int"
    DOUBLE = "double"
    STR = "str"


class Dimension(Protocol):
    """One parameter that is searched. `size` is how many values it has, None when they cannot be counted; `is_ordered`
    says whether neighbours are alike."""

    @property
    def name(self) -> str: ...
    @property
    def data_type(self) -> DataType: ...
    @property
    def size(self) -> int | None: ...
    @property
    def is_ordered(self) -> bool: ...

    def value(self, coordinate: Coordinate) -> Value:
        """The value at a coordinate, which may lie out of range: the nearest is meant."""

    def coordinate(self, value: Value) -> Coordinate | None:
        """Where a value lies; None when it is none of this dimension."""


@dataclass(frozen=True)
class Continuous:
    """Any number from `low` to `high`; with a `base` these are exponents, value = base^x."""

    name: str
    low: float
    high: float
    base: float | None = None

    data_type = DataType.DOUBLE
    size = None
    is_ordered = True

    def value(self, coordinate: Coordinate) -> float:
        share = min(1.0, max(0.0, float(coordinate)))
        # Exact at both ends.
        exponent = self.low * (1.0 - share) + self.high * share
        return exponent if self.base is None else self.base**exponent

    def coordinate(self, value: Value) -> float | None:
        number = _number(value)
        if number is None or (self.base is not None and number <= 0):
            return None
        exponent = number if self.base is None else math.log(number) / math.log(self.base)
        share = (exponent - self.low) / (self.high - self.low)
        # What was rounded on its way through text is still at the end.
        return min(1.0, max(0.0, share)) if -1e-9 <= share <= 1 + 1e-9 else None


@dataclass(frozen=True)
class Steps(Sequence[Value]):
    """The values of a range with a step, counted but not kept: there may be two billion. With a `base` the range is one
    of exponents."""

    low: Decimal
    step: Decimal
    size: int
    data_type: DataType
    base: Decimal | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Value:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        # In decimals: 0.001 and twice a step of 0.002 are 0.005, not 0.0050000000000000001.
        exponent = self.low + index * self.step
        if self.base is None:
            return int(exponent) if self.data_type is DataType.INT else float(exponent)
        if self.data_type is DataType.INT:
            return int(self.base) ** int(exponent)
        return float(self.base) ** float(exponent)

    def index_of(self, value: Value) -> int | None:
        """Where a value lies; None when it is none of these."""
        number = _number(value)
        if number is None or (self.base is not None and number <= 0):
            return None
        exponent = number if self.base is None else math.log(number) / math.log(float(self.base))
        index = round((exponent - float(self.low)) / float(self.step))
        if not 0 <= index < self.size:
            return None
        return index if math.isclose(float(self[index]), number, rel_tol=1e-9, abs_tol=1e-12) else None


@dataclass(frozen=True)
class Levels:
    """Finitely many numbers in order."""

    name: str
    data_type: DataType
    values: Sequence[Value]

    is_ordered = True

    @property
    def size(self) -> int:
        return len(self.values)

    def value(self, coordinate: Coordinate) -> Value:
        return self.values[min(self.size - 1, max(0, int(coordinate)))]

    def coordinate(self, value: Value) -> int | None:
        if isinstance(self.values, Steps):
            return self.values.index_of(value)
        return next((index for index, known in enumerate(self.values) if _is_same(known, value)), None)


@dataclass(frozen=True)
class Choice:
    """Finitely many values of which none is nearer to one than to another."""

    name: str
    data_type: DataType
    values: Sequence[Value]

    is_ordered = False

    @property
    def size(self) -> int:
        return len(self.values)

    def value(self, coordinate: Coordinate) -> Value:
        return self.values[min(self.size - 1, max(0, int(coordinate)))]

    def coordinate(self, value: Value) -> int | None:
        return next((index for index, known in enumerate(self.values) if str(known) == str(value)), None)


@dataclass(frozen=True)
class Fixed:
    """A parameter that is the same in every trial; `user_defined` ones are no parameters that the platform knows."""

    name: str
    data_type: DataType
    value: Value
    user_defined: bool = False


@dataclass(frozen=True)
class Space:
    """What is searched, and what stays as it is."""

    dimensions: Sequence[Dimension]
    fixed: Sequence[Fixed] = ()

    @property
    def size(self) -> int | None:
        """How many different trials there can be; None when they cannot be counted."""
        size = 1
        for dimension in self.dimensions:
            if dimension.size is None:
                return None
            size *= dimension.size
        return size

    def values(self, place: Place) -> dict[str, Value]:
        """The parameters of a trial at `place`, the fixed ones among them."""
        searched = zip(self.dimensions, place, strict=True)
        return {dimension.name: dimension.value(coordinate) for dimension, coordinate in searched} | {
            parameter.name: parameter.value for parameter in self.fixed
        }

    def place(self, values: Mapping[str, Value]) -> Place | None:
        """Where a trial with these values lies; None when one of them is missing or none of this space."""
        found = []
        for dimension in self.dimensions:
            coordinate = dimension.coordinate(values[dimension.name]) if dimension.name in values else None
            if coordinate is None:
                return None
            found.append(coordinate)
        return tuple(found)

    def key(self, place: Place) -> Hashable:
        """Equal for places whose trials are the same."""
        return tuple(
            min(dimension.size - 1, max(0, int(coordinate))) if dimension.size else dimension.value(coordinate)
            for dimension, coordinate in zip(self.dimensions, place, strict=True)
        )


def _number(value: Value) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_same(known: Value, value: Value) -> bool:
    number, other = _number(known), _number(value)
    return number is not None and other is not None and math.isclose(number, other, rel_tol=1e-9, abs_tol=1e-12)
