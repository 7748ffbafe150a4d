"""Sessions: a random token, its CSRF token, and an end."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Session:
    """What is kept of a session: digests, never the tokens."""

    token_digest: str
    csrf_digest: str
    user: str
    expires_at: datetime

    def is_valid(self, now: datetime) -> bool:
        return now < self.expires_at

    def csrf_matches(self, csrf_token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.csrf_digest, digest(csrf_token))


@dataclass(frozen=True)
class IssuedSession:
    """A session with the tokens that only its owner ever sees."""

    session: Session
    token: str
    csrf_token: str


def issue_session(user: str, now: datetime, seconds: float) -> IssuedSession:
    """Draw a session of `user` that ends `seconds` after `now`."""
    token, csrf_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    session = Session(digest(token), digest(csrf_token), user, now + timedelta(seconds=seconds))
    return IssuedSession(session, token, csrf_token)


def digest(token: str) -> str:
    """A plain digest is enough: the tokens hold 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()
