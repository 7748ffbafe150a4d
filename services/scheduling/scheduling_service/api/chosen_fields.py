"""Parameters that are comma-separated lists; of `fields`, which fields of a message a client wants."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from google.protobuf.message import Message
from servicekit.errors import invalid

M = TypeVar("M", bound=Message)


def chosen_fields(text: str, message: type[Message]) -> Collection[str]:
    """REST names out of a comma-separated list, all of `message` when it is empty; 400 lists the known."""
    known = [field.json_name for field in message.DESCRIPTOR.fields]
    names = words(text)
    for name in names:
        if name not in known:
            raise invalid("fields", name, known)
    return frozenset(names or known)


def words(text: str) -> list[str]:
    """Of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def only(message: M, names: Collection[str]) -> M:
    """`message` without the fields that are not among `names`."""
    for field in message.DESCRIPTOR.fields:
        if field.json_name not in names:
            message.ClearField(field.name)
    return message
