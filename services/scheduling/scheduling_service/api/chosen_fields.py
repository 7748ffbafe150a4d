"""The `fields` parameter: which fields of a message a client wants."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from google.protobuf.message import Message
from servicekit.errors import invalid

M = TypeVar("M", bound=Message)


def chosen_fields(text: str, message: type[Message]) -> Collection[str]:
    """REST names out of a comma-separated list, all of `message` when it is empty; 400 lists the known."""
    known = [field.json_name for field in message.DESCRIPTOR.fields]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise invalid("fields", name, known)
    return frozenset(names or known)


def only(message: M, names: Collection[str]) -> M:
    """`message` without the fields that are not among `names`."""
    for field in message.DESCRIPTOR.fields:
        if field.json_name not in names:
            message.ClearField(field.name)
    return message
