"""Hashing and checking passwords with argon2id."""

from __future__ import annotations

import secrets
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's smallest recommended setting: about 20 ms and 19 MiB, so that a burst of logons starves nothing.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def hash_password(password: str) -> str:
    """An argon2id string with a fresh salt. Takes tens of milliseconds of CPU."""
    return _HASHER.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """True when `password` is the one hashed; None (no such user) is False after the same work."""
    try:
        _HASHER.verify(password_hash or _hash_of_nobody(), password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


@cache
def _hash_of_nobody() -> str:
    return hash_password(secrets.token_urlsafe(16))
