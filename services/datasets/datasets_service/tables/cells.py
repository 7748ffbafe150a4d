"""What makes a cell a number."""

from __future__ import annotations

import math
import re

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER = re.compile(rf"{_JSON_NUMBER.pattern}|-?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][+-]?[0-9]+)?|-?(?:0|[1-9][0-9]*)\.")
# Surely finite; for most cells of most tables one look is enough.
is_plain_number_or_empty = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)?").fullmatch


def is_number(cell: str) -> bool:
    """Whether it is a finite decimal number, blanks around it aside. 007, +49, 1_000 and NaN would lose by it: text."""
    return _NUMBER.fullmatch(cell.strip(" ")) is not None and math.isfinite(float(cell))


def json_number(cell: str) -> str:
    """A number as JSON spells it: digit by digit the same where that is possible."""
    text = cell.strip(" ")
    return text if _JSON_NUMBER.fullmatch(text) else repr(float(text))
