"""Enum words of the contract: read in any case, kept as the reference spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from servicekit.errors import invalid

FRAMEWORKS = ("Caffe", "TensorFlow", "PyTorch")
ACCELERATORS = ("Single", "Native", "Elastic")
MODEL_TYPES = ("Training", "Inference")
# How the workers of a TensorFlow training share their work.
STRATEGIES = ("MultiWorkerMirroredStrategy", "ParameterServerStrategy")

# Clients generated from the reference send its marks too: "Adam (Cf, TF and PT)".
MAX_WORD_LENGTH = 100
MAX_TEXT_LENGTH = 10_000
_MARKS = re.compile(r"\s*\([^()]*\)\s*$")


def read_word(field: str, text: str, allowed: Iterable[str]) -> str:
    """`text` as the reference spells it; 400 naming `field` and the allowed words otherwise."""
    allowed = tuple(allowed)
    if len(text) > MAX_WORD_LENGTH:
        raise invalid(field, text, allowed)
    wanted = _MARKS.sub("", text).strip().casefold()
    for word in allowed:
        if word.casefold() == wanted:
            return word
    raise invalid(field, text, allowed)


def check_text(field: str, text: str) -> str:
    """`text` if it can be stored; 400 naming `field` otherwise."""
    if "\0" in text or len(text) > MAX_TEXT_LENGTH:
        raise invalid(field, text, f"a text of at most {MAX_TEXT_LENGTH} characters, none of them NUL")
    return text
