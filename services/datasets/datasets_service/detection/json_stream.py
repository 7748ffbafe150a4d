"""Reading a JSON file of gigabytes an element at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK_BYTES = 1024 * 1024
_BLANKS = re.compile(r"[ \t\r\n]*")


class JsonError(Exception):
    """No JSON object of the expected form; says where."""


class JsonObject:
    """The members of the object that a file holds, in the order of the file.

    Memory holds what lies between the last element and the next, `max_element_characters` at most.
    """

    def __init__(self, file: BinaryIO, max_element_characters: int) -> None:
        self._file, self._limit = file, max_element_characters
        self._decode_bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at, self._before = "", 0, 0
        self._is_whole = False

    def members(self) -> Iterator[tuple[str, bool]]:
        """Name and whether it is an array. Before going on, read it with `elements` or `value`, or it is skipped."""
        self._expect("{")
        if self._next_is("}"):
            return
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise self._error("a name in quotes is missing")
            self._expect(":")
            is_array = self._peek() == "["
            start = self._position
            yield name, is_array
            if self._position == start:
                self._skip()
            if not self._next_is(","):
                self._expect("}")
                return

    def elements(self) -> Iterator[Any]:
        """The elements of the array that comes now."""
        self._expect("[")
        if self._next_is("]"):
            return
        while True:
            yield self._value()
            if not self._next_is(","):
                self._expect("]")
                return

    def _skip(self) -> None:
        if self._peek() != "[":
            self._value()
            return
        for _ in self.elements():
            pass

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number that ends with the text may go on behind it.
                if end < len(self._text) or self._is_whole:
                    self._at = end
                    return value
                problem = "it ends too early"
            except ValueError as error:
                problem = getattr(error, "msg", None) or str(error)
            except RecursionError:
                raise self._error("it is nested too deeply") from None
            if self._is_whole:
                raise self._error(problem)
            if len(self._text) - self._at > self._limit:
                raise self._error(f"no value of at most {self._limit} characters ({problem})")
            self._read()

    def _peek(self) -> str:
        """The next character that is no blank, empty at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_whole:
                return ""
            self._read()

    def _next_is(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._next_is(character):
            raise self._error(f"{character!r} is missing")

    def _read(self) -> None:
        kept = len(self._text) - self._at
        # Twice as much each time, so that a large element is not tried again for every chunk.
        content = self._file.read(max(CHUNK_BYTES, kept))
        try:
            more = self._decode_bytes.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise self._error("it is not UTF-8") from error
        self._before += self._at
        self._text, self._at = self._text[self._at :] + more, 0
        self._is_whole = not content

    @property
    def _position(self) -> int:
        return self._before + self._at

    def _error(self, problem: str) -> JsonError:
        return JsonError(f"{problem} (near character {self._position})")
