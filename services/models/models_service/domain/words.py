"""Enum words of the contract: read in any case, kept as the reference spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from servicekit.errors import invalid

FRAMEWORKS = ("Caffe", "TensorFlow", "PyTorch")
ACCELERATORS = ("Single", "Native", "Elastic")
MODEL_TYPES = ("Training", "Inference")

# Clients generated from the reference send its marks too: "Adam (Cf, TF and PT)".
_MARKS = re.compile(r"\s*\([^()]*\)\s*$")


def read_word(field: str, text: str, allowed: Iterable[str]) -> str:
    """`text` as the reference spells it; 400 naming `field` and the allowed words otherwise."""
    allowed = tuple(allowed)
    wanted = _MARKS.sub("", text).strip().casefold()
    for word in allowed:
        if word.casefold() == wanted:
            return word
    raise invalid(field, text, allowed)
