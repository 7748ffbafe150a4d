"""A part of a table."""

from __future__ import annotations

from dataclasses import dataclass

Cell = float | str | None


@dataclass(frozen=True)
class TableSlice:
    """Rows `start` and on: numbers where the column is one of numbers, else text; None where a cell is empty.

    `json_text` is the same as JSON, its numbers as exact as the table has them.
    """

    columns: list[str]
    start: int
    rows: list[list[Cell]]
    json_text: str


class SliceTooLargeError(Exception):
    """More than an answer holds: the first `fitting` rows would do, all of the slice would not."""

    def __init__(self, fitting: int) -> None:
        super().__init__(f"{fitting} rows fit")
        self.fitting = fitting
