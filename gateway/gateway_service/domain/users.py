"""Users and their roles."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from servicekit.errors import invalid
from servicekit.names import check_name

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 1024


class Role(StrEnum):
    """What a user may do: an administrator sees and changes all, a user only their own."""

    ADMIN = "admin"
    USER = "user"

    @classmethod
    def parse(cls, text: str) -> Role:
        """Read in any case; empty means `user`."""
        try:
            return cls(text.strip().lower() or "user")
        except ValueError:
            raise invalid("role", text, [role.value for role in cls]) from None


@dataclass(frozen=True)
class User:
    """One account. `password_hash` is an argon2 string with its own parameters and salt."""

    name: str
    password_hash: str
    role: Role
    created_at: datetime

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


def check_user_name(name: str) -> str:
    """A name is safe in a header, in a path and before the colon of HTTP Basic."""
    return check_name("name", name)


def check_password(password: str) -> str:
    """Length only: rules about character classes make passwords worse."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        # The value itself must not come back in a message.
        raise invalid("password", "***", f"{MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters")
    return password
