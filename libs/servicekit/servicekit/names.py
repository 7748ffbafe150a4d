"""Names that users give to things; they become path segments, so their alphabet is small."""

from __future__ import annotations

import re
from collections.abc import Collection

from servicekit.errors import invalid

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALLOWED = "1 to 128 letters, digits, '.', '_' and '-', the first a letter or digit"


def check_name(field: str, value: str, reserved: Collection[str] = ()) -> str:
    """Return `value` if it may name something; 400 naming `field` otherwise."""
    if not _NAME.fullmatch(value) or ".." in value:
        raise invalid(field, value, ALLOWED)
    if value in reserved:
        raise invalid(field, value, f"a name other than the reserved {', '.join(sorted(reserved))}")
    return value
