"""Trials of studies, as all services know them that run them or ask for them: ids, and values of their parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from servicekit.errors import Code, ServiceError, invalid

MAX_IDS = 10_000
# How long it is known that a trial was deleted.
DELETED_FOR = timedelta(days=30)
_ID = re.compile(r"[0-9a-f]{32}")
# What a message with a `kind` holds, by the type of the value; a bool is an int, too.
_KINDS = {bool: "flag", int: "whole", float: "number", str: "text"}

Value = int | float | str | bool
Message = TypeVar("Message")


def check_id(field: str, trial_id: str) -> None:
    """400 naming `field` unless who starts a trial may call it so (uuid4 hex): ids become names of folders."""
    if not _ID.fullmatch(trial_id):
        raise invalid(field, trial_id, "32 hexadecimal digits in lower case")


def check_ids(field: str, trial_ids: Sequence[str]) -> None:
    """400 for an id that no trial can have, naming `field`, and for too many, naming its plural."""
    if len(trial_ids) > MAX_IDS:
        raise invalid(f"{field}s", f"{len(trial_ids)} ids", f"at most {MAX_IDS}")
    for trial_id in trial_ids:
        check_id(field, trial_id)


def deleted_trial(field: str, trial_id: str) -> ServiceError:
    """404 with the reason DELETED: it was there, or was deleted before it came."""
    return ServiceError(Code.NOT_FOUND, "DELETED", f"trial {trial_id} was deleted", {field: trial_id})


def value_message(make: type[Message], value: Value) -> Message:
    """A message with the oneof `kind` of whole, number, text and flag."""
    return make(**{next(kind for of, kind in _KINDS.items() if isinstance(value, of)): value})


def value_of(message: Any, place: str) -> Value:
    """What such a message holds; 400 naming `place` when that is nothing."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid(place, "", "a value; it has to be given")
    value: Value = getattr(message, kind)
    return value
