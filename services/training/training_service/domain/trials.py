"""Trials: trainings that a study starts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servicekit.errors import Code, ServiceError, invalid

BATCH_SIZE = "batchsize"
MAX_BATCH_SIZE = 2**31 - 1
MAX_IDS = 10_000
MAX_CONFIG_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}")


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


@dataclass(frozen=True)
class KnownParameter:
    """A hyperparameter that trials may have. `data_type` is int, double, str or bool; `allowed` says in words what it
    may hold, unless it is one of `words`."""

    name: str
    data_type: str
    allowed: str = ""
    words: tuple[str, ...] = ()


KNOWN_BATCH_SIZE = KnownParameter(BATCH_SIZE, "int", "a whole number of at least 1")


@dataclass(frozen=True)
class TrialResults:
    """What a program wrote for its study; `error` says why there is no `text` though there is something."""

    text: str = ""
    error: str = ""


def check_id(trial_id: str) -> None:
    """400 unless a trial may be called so: ids become names of folders."""
    if not _ID.fullmatch(trial_id):
        raise invalid("trial_id", trial_id, "32 hexadecimal digits in lower case")


def check_ids(trial_ids: Sequence[str]) -> None:
    """400 for an id that no trial can have, and for too many."""
    if len(trial_ids) > MAX_IDS:
        raise invalid("trial_ids", f"{len(trial_ids)} ids", f"at most {MAX_IDS}")
    for trial_id in trial_ids:
        check_id(trial_id)


def read_batch_size(place: str, value: Any) -> int:
    """400 naming `place` unless it is a batch size, as a number or as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 1 <= number <= MAX_BATCH_SIZE or number != int(number):
        raise invalid(place, value, f"{KNOWN_BATCH_SIZE.allowed}, at most {MAX_BATCH_SIZE}")
    return int(number)


def check_user_defined(field: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """400, naming `field`.NAME, for what a program could not be told, and for names that mean something else."""
    for name, value in given.items():
        place = f"{field}.{name}"
        if not name or "\0" in name or name in known:
            raise invalid(place, value, "userDefined with a name that no hyperparameter has")
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, str) and "\0" in value):
            raise invalid(place, value, "a finite number, or a text without NUL")


def deleted_trial(trial_id: str) -> ServiceError:
    """404: it was there, or was deleted before it came."""
    return ServiceError(Code.NOT_FOUND, "DELETED", f"trial {trial_id} was deleted", {"trial_id": trial_id})
