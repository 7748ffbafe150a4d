"""Reading loosely written data: numbers as text, words in any case; what will not do is named with its place."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from servicekit.errors import invalid
from servicekit.texts import storable

MAX_DATA_BYTES = 4 * 1024 * 1024
# Reading one takes a hundred times as long as JSON, and 400 bytes of memory a character, and nothing else runs then.
MAX_LITERAL_CHARACTERS = 256 * 1024
MAX_SHOWN = 100
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def read_tree(field: str, text: str) -> dict[str, Any]:
    """An object in JSON, or as a Python literal, as JSON can hold it and databases can store it; 400."""
    allowed = "an object in JSON, or a Python dict literal"
    if len(text) > MAX_DATA_BYTES:
        raise invalid(field, f"({len(text)} characters)", f"at most {MAX_DATA_BYTES} bytes")
    try:
        tree = json.loads(text)
    except RecursionError:
        raise invalid(field, "(nested too deeply)", allowed) from None
    except ValueError as error:
        tree = _read_literal(field, text.strip(), f"{shown(text)} ({error})", allowed)
    if not isinstance(tree, dict):
        raise invalid(field, shown(tree), allowed)
    return _stored(field, tree)


def _read_literal(field: str, text: str, complaint: str, allowed: str) -> Any:
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise invalid(
            field, complaint, f"an object in JSON; a Python literal has at most {MAX_LITERAL_CHARACTERS} bytes"
        )
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # Of the two, JSON's complaint says where.
        raise invalid(field, complaint, allowed) from None


def _stored(field: str, tree: dict[Any, Any]) -> dict[str, Any]:
    """The tree as it comes back from a database."""
    try:
        text = json.dumps(tree, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise invalid(field, "(half of a surrogate pair)", "texts of whole characters") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid(field, f"({error})", "objects, lists, texts and finite numbers, as JSON has them") from None
    if _NUL.search(text):
        raise invalid(field, "(a text with the character 0)", "texts without it")
    found: dict[str, Any] = json.loads(text)
    return found


class Fields:
    """An object of the request at `path`; fields that are null count as not given."""

    def __init__(self, path: str, tree: Mapping[str, Any]) -> None:
        self._path, self._tree = path, tree

    def place(self, name: str) -> str:
        """What people call a field of it."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, *names: str) -> tuple[str, Any]:
        """The first of these fields that is given, and its name; None when none is."""
        for name in names:
            if self._tree.get(name) is not None:
                return name, self._tree[name]
        return names[0], None

    def text(self, *names: str, default: str | None = None) -> str:
        """Text that is not empty; 400, also when it is missing without a default."""
        name, value = self.get(*names)
        if value is None or value == "":
            if default is not None:
                return default
            raise invalid(self.place(name), "", "a text; it has to be given")
        if isinstance(value, bool | list | dict | tuple | set | bytes):
            raise invalid(self.place(name), shown(value), "a text")
        if storable(str(value)) != str(value):
            raise invalid(self.place(name), shown(value), "a text of whole characters, none of them 0")
        return str(value)

    def word(self, name: str, allowed: Mapping[str, str], default: str | None = None) -> str:
        """One of the words of `allowed`, in any case, as it is printed; 400 listing them."""
        given = self.text(name, default=default)
        found = allowed.get(given.strip().lower())
        if found is None:
            raise invalid(self.place(name), shown(given), sorted(set(allowed.values())))
        return found

    def number(self, *names: str) -> float | None:
        """A finite number, also as text; None when it is not given."""
        name, value = self.get(*names)
        return None if value is None else as_number(self.place(name), value)

    def whole(self, *names: str) -> int | None:
        """A whole number, also as text; None when it is not given."""
        name, value = self.get(*names)
        return None if value is None else as_whole(self.place(name), value)

    def within(self, low: int, high: int, default: int, *names: str) -> int:
        """A whole number from `low` to `high`."""
        value = self.whole(*names)
        if value is None:
            return default
        if not low <= value <= high:
            raise invalid(self.place(self.get(*names)[0]), value, f"{low} to {high}")
        return value

    def limit(self, *names: str, most: int) -> int | None:
        """A whole number from 1 to `most`; -1, 0 and nothing are no limit: None."""
        value = self.whole(*names)
        if value in (None, 0, -1):
            return None
        assert value is not None
        if not 1 <= value <= most:
            raise invalid(self.place(self.get(*names)[0]), value, f"1 to {most}, or -1 (or 0) for no limit")
        return value

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, empty when not given; one object alone counts as a list of it."""
        found = self.items(name)
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                raise invalid(f"{self.place(name)}[{index}]", shown(item), "an object")
        return [Fields(f"{self.place(name)}[{index}]", item) for index, item in enumerate(found)]

    def items(self, name: str) -> Sequence[Any]:
        """A list, empty when not given; one value alone counts as a list of it."""
        _, value = self.get(name)
        if value is None:
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def object(self, name: str, *, required: bool = False) -> Fields:
        """An object, empty when not given; 400 when it is required."""
        _, value = self.get(name)
        if (value is None and required) or not isinstance(value or {}, dict):
            raise invalid(self.place(name), "" if value is None else shown(value), "an object; it has to be given")
        return Fields(self.place(name), value or {})

    def __iter__(self) -> Any:
        return iter(self._tree.items())

    def __contains__(self, name: str) -> bool:
        return self._tree.get(name) is not None


def as_number(place: str, value: Any) -> float:
    """A finite number, also as text; 400."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise invalid(place, shown(value), "a number") from None
    if not math.isfinite(number):
        raise invalid(place, shown(value), "a finite number")
    return number


def as_whole(place: str, value: Any) -> int:
    """A whole number, also as text or written as 3.0; 400."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    number = as_number(place, value)
    if not number.is_integer():
        raise invalid(place, shown(value), "a whole number")
    return int(number)


def shown(value: Any) -> str:
    """A value in an error, short."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
