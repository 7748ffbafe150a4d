"""What a solver.prototxt says, as far as hyperparameters may be left to it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from servicekit.errors import invalid

# A comment, a text in quotes, one that does not end on its line, a brace, or a word; commas and semicolons only stand
# between them. Texts in quotes give nothing back (*+): trying each \" in them as their end would take quadratic time.
_TOKEN = re.compile(
    r"""#[^\n]*|"(?:\\.|[^"\\\n])*+"|'(?:\\.|[^'\\\n])*+'|(?P<open>["'][^\n]*)|[{}<>\[\]:]|[^\s{}<>\[\]:,;#"']+"""
)
_OPENING, _CLOSING = "{<", "}>"


def solver_fields(text: str, field: str = "solverContent") -> dict[str, str]:
    """The fields of the solver itself, not of the nets within it, with their values as text; the last one counts.

    400 naming `field` for a text in quotes that does not end on its line. What cannot be understood otherwise is left
    out: a training reads the file with Caffe's own rules and says what is wrong.
    """
    fields: dict[str, str] = {}
    depth = 0
    before = name = ""
    for token in _tokens(text, field):
        if name and token != "[":
            fields[name] = token.strip("\"'")
            name = ""
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
        elif token == ":" and not depth:
            name = before
        before = token
    return fields


def _tokens(text: str, field: str) -> Iterator[str]:
    # One by one: a list of them is many times as large as the text.
    for match in _TOKEN.finditer(text):
        if match["open"]:
            raise invalid(field, match["open"], "texts in quotes that end on the line they begin on")
        if not match[0].startswith("#"):
            yield match[0]
