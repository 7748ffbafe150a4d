"""What the use cases need of the outside."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from gateway_service.domain.sessions import Session
from gateway_service.domain.users import User


class Accounts(Protocol):
    """Users and sessions; each call is one transaction."""

    async def find_user(self, name: str) -> User | None: ...

    async def list_users(self) -> list[User]:
        """All users by name."""

    async def add_user(self, user: User) -> bool:
        """False when the name is taken."""

    async def set_password_hash(self, name: str, password_hash: str) -> bool:
        """Also ends all sessions of the user; False when there is no such user."""

    async def remove_user(self, name: str) -> bool:
        """With all sessions; False when there is no such user."""

    async def find_session(self, token_digest: str) -> tuple[Session, User] | None: ...

    async def add_session(self, session: Session, now: datetime) -> None:
        """Also removes sessions that ended before `now`."""


class SettingsSource(Protocol):
    """Knows what the services were started with."""

    async def settings_of(self, service: str) -> Mapping[str, str]:
        """Name -> text, secrets left out; 503 when the service does not answer."""


class HealthProbe(Protocol):
    """Asks every service whether it serves."""

    async def probe(self) -> Mapping[str, str]:
        """Service name -> `SERVING` or a word that says why not. Never raises."""
