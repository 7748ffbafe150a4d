"""Trials: trainings that a study starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servicekit.errors import invalid

BATCH_SIZE = "batchsize"
MAX_BATCH_SIZE = 2**31 - 1
MAX_CONFIG_BYTES = 1024 * 1024
ALLOWED_BATCH_SIZE = f"a whole number of at least 1, at most {MAX_BATCH_SIZE}"


@dataclass(frozen=True)
class TrialParts:
    """What trials have beside what every training has; empty text, 0 and None mean that it was not given.

    `hyperparameter` is all that holds, the model's with the trial's own over them. `weights` is a file or a folder.
    """

    study: str
    number: int = 0
    hyperparameter: Mapping[str, Any] = field(default_factory=dict)
    user_defined: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 0
    gpus_per_worker: int = 0
    weights: str = ""
    instance_group: str = ""


def read_batch_size(place: str, value: Any) -> int:
    """400 naming `place` unless it is a batch size, as a number or as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 1 <= number <= MAX_BATCH_SIZE or number != int(number):
        raise invalid(place, value, ALLOWED_BATCH_SIZE)
    return int(number)


def check_user_defined(field: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """400, naming `field`.NAME, for what a program could not be told, and for names that mean something else."""
    for name, value in given.items():
        place = f"{field}.{name}"
        if not name or "\0" in name or name in known:
            raise invalid(place, value, "userDefined with a name that no hyperparameter has")
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, str) and "\0" in value):
            raise invalid(place, value, "a finite number, or a text without NUL")
