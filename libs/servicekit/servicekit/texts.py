"""Texts that came from programs, which may have written anything."""

from __future__ import annotations

from typing import Any

_NOT_STORED = "\ufffd"


def storable(text: str) -> str:
    """`text` as every database takes it: U+FFFD stands for NUL, which PostgreSQL refuses, and for lone surrogates."""
    return text.replace("\0", _NOT_STORED).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def storable_json(value: Any) -> Any:
    """A parsed JSON document with all its texts `storable`; RecursionError when it is nested too deeply."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable_json(item) for key, item in value.items()}
    return value
