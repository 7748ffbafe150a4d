"""Labels of texts; the program has `build_model(tokens, length, labels)`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlmesh_sdk.served.base import Item, Tensor, Unreadable
from dlmesh_sdk.served.rows import MAX_TEXT_CHARACTERS, ServedRows, require_file


class ServedText(ServedRows):
    """`TOKENS` INT64 [at most `length`] as TextEncoding makes them, filled up with 0.

    A text is a line of a text file, the cell in the encoding's column of a `.csv` file, or what a request says: a
    JSON object with that column, or else the text itself.
    """

    task = "text"

    @classmethod
    def make_encoding(cls, content: Mapping[str, Any]) -> Any:
        from dlmesh_sdk.text_encoding import TextEncoding

        return TextEncoding.from_json(content)

    @classmethod
    def columns_of(cls, encoding: Mapping[str, Any]) -> list[str]:
        return [str(encoding["column"])]

    @classmethod
    def inputs_of(cls, encoding: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return (Tensor("TOKENS", "INT64", (-1,), is_ragged=True),)

    def items(self, file: Path, name: str) -> Iterator[Item]:
        if name.lower().endswith(".csv"):
            yield from self.rows_of(file, name)
            return
        try:
            require_file(file)
            with file.open("rb") as lines:
                for number in itertools.count():
                    # What is beyond the limit begins no line of its own.
                    line = lines.readline(4 * MAX_TEXT_CHARACTERS)
                    rest = line
                    while rest and not rest.endswith(b"\n"):
                        rest = lines.readline(4 * MAX_TEXT_CHARACTERS)
                    if not line:
                        return
                    yield Item(f"{name}:{number}", _text(line.rstrip(b"\r\n")))
        except (OSError, ValueError) as error:
            yield Item(name, Unreadable(str(error).replace(str(file), name)))

    def item(self, content: bytes, sample_id: str = "") -> Item:
        if content.lstrip()[:1] == b"{":
            try:
                row = json.loads(content)
            except (ValueError, RecursionError):
                row = {}
            if isinstance(row.get(self.encoding.column), str):
                return Item(sample_id, row[self.encoding.column])
        return Item(sample_id, _text(content))

    def cells(self, value: Any) -> list[str]:
        return [value[:MAX_TEXT_CHARACTERS]] if isinstance(value, str) else super().cells(value)

    def stack(self, samples: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
        tokens = np.zeros((len(samples), max(map(len, samples))), np.int64)
        for row, sample in zip(tokens, samples, strict=True):
            row[: len(sample)] = sample
        return {"TOKENS": tokens}

    def check(self, inputs: Mapping[str, Any]) -> None:
        tokens = inputs["TOKENS"]
        most, longest = self.encoding.shape["tokens"] - 1, self.encoding.length
        if not 1 <= tokens.shape[1] <= longest:
            raise ValueError(f"TOKENS: {tokens.shape[1]} tokens; allowed: 1 to {longest}")
        # One request has few: faster so than by operations on arrays.
        rows = tokens.tolist()
        if any(min(row) < 0 or max(row) > most for row in rows):
            raise ValueError(f"TOKENS: allowed are numbers from 0 to {most}")
        if any(row[0] == 0 for row in rows):
            raise ValueError("TOKENS: a text begins with a token above 0, which stands for the end")

    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.answer(module(inputs["TOKENS"]))


def _text(content: bytes) -> str | Unreadable:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8: {error.reason}")
