"""Addresses as people may see them."""

from __future__ import annotations

from urllib.parse import urlsplit


def without_password(address: str) -> str:
    """The address with `***` in the place of its password, if it has one: for answers, messages and logs."""
    parts = urlsplit(address)
    if parts.password is None:
        return address
    login, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login.partition(':')[0]}:***@{host}").geturl()
