"""Settings as `GET /conf` shows them: every field of a settings class but those that it marks as secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

# The metadata of a field whose value leaves its process in no form: `field(metadata=SECRET)`.
SECRET: Mapping[str, bool] = MappingProxyType({"left_out": True})
# The same for what others show.
SHOWN_ELSEWHERE = SECRET


def shown_settings(settings: Mapping[str, object]) -> dict[str, str]:
    """Name to text for the fields of `settings`, which are frozen dataclasses by the name that goes before theirs.

    Names are field names with dots (`max.silent.seconds`); settings in settings and the keys of mappings are added to
    them. A field that holds None is an empty text, and an address is shown without user, password and query.
    """
    shown: dict[str, str] = {}
    for prefix, each in settings.items():
        shown |= dict(_rows(prefix, each))
    return shown


def without_credentials(text: str) -> str:
    """An address without what stands before its `@` and behind its `?`; any other text as it is.

    Where a password may hold one of the two signs itself, only the scheme is left.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or rest.startswith("/"):  # a path of this machine
        return text
    credentials, at, address = rest.rpartition("@")
    if at and ("?" in credentials or "@" in credentials):
        return f"{scheme}://..."
    return f"{scheme}://{address.partition('?')[0]}"


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_dataclass(value):
        for field in fields(value):
            if not field.metadata.get("left_out"):
                yield from _rows(_joined(name, field.name.replace("_", ".")), getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _rows(_joined(name, str(key)), item)
    else:
        yield name, _text(value)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, list | tuple):
        return ":".join(map(_text, value))
    return str(value) if isinstance(value, Path) else without_credentials(str(value))
