"""What a solver.prototxt says, as far as hyperparameters may be left to it."""

from __future__ import annotations

import re

# A comment, a text in quotes, a brace, or a word; colons, commas and semicolons only stand between them.
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:]|[^\s{}<>\[\]:,;#"']+""")
_OPENING, _CLOSING = "{<", "}>"


def solver_fields(text: str) -> dict[str, str]:
    """The fields of the solver itself, not of the nets within it, with their values as text; the last one counts.

    What cannot be understood is left out: a training reads the file with Caffe's own rules and says what is wrong.
    """
    fields: dict[str, str] = {}
    tokens = [token for token in _TOKEN.findall(text) if not token.startswith("#")]
    depth = 0
    for place, token in enumerate(tokens):
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
        elif token == ":" and not depth and 0 < place < len(tokens) - 1:
            values = (value for value in tokens[place + 1 : place + 3] if value != "[")
            fields[tokens[place - 1]] = next(values, "").strip("\"'")
    return fields
