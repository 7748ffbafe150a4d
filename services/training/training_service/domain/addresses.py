"""Addresses as people may see them."""

from __future__ import annotations

import re

# What stands between // and the last @ before the path.
_LOGIN = re.compile(r"//([^/@:\s]*):[^/\s]*@")


def without_passwords(text: str) -> str:
    """The text with `***` in the place of every password in an address: for answers, messages and logs."""
    return _LOGIN.sub(r"//\1:***@", text)
