"""Who sent this request?"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from servicekit.errors import forbidden, unauthenticated

from gateway_service.domain.credentials import CookieCredential, Credential, PasswordCredential, TokenCredential
from gateway_service.domain.passwords import matches
from gateway_service.domain.sessions import digest
from gateway_service.domain.users import User
from gateway_service.usecases.ports import Accounts

MAX_CONCURRENT_HASHES = 2


@dataclass(frozen=True)
class Verdict:
    """The caller, and for how many seconds the answer may be remembered elsewhere."""

    user: str
    is_admin: bool
    lifetime_seconds: float


class VerifiedPasswords:
    """Names whose password was verified within the last seconds, keyed by an HMAC of name and password.

    Bounded, and emptied for a user whose account changes. `epoch` moves with each such change: a verification that
    began before it must not be stored after it.
    """

    def __init__(
        self, lifetime_seconds: float, max_entries: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lifetime_seconds = lifetime_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, tuple[User, float]] = OrderedDict()
        self.epoch = 0

    def key(self, credential: PasswordCredential) -> bytes:
        """The digest under which a credential is remembered; the key lives and dies with this process."""
        text = f"{len(credential.user)}:{credential.user}:{credential.password}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()

    def find(self, key: bytes) -> User | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        user, expires = entry
        if self._clock() >= expires:
            del self._entries[key]
            return None
        return user

    def store(self, key: bytes, user: User, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self._entries[key] = (user, self._clock() + self._lifetime_seconds)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def forget(self, name: str) -> None:
        """Call after a change of the account is committed."""
        self.epoch += 1
        for key in [key for key, (user, _) in self._entries.items() if user.name == name]:
            del self._entries[key]


class Authenticator:
    """Turns a credential into a verdict, or refuses with 401 (who are you?) or 403 (csrftoken)."""

    def __init__(
        self,
        accounts: Accounts,
        verified: VerifiedPasswords,
        now: Callable[[], datetime],
        cache_seconds: float,
    ) -> None:
        self._accounts = accounts
        self._verified = verified
        self._now = now
        self._cache_seconds = cache_seconds
        self._hashing = asyncio.Semaphore(MAX_CONCURRENT_HASHES)
        self._running: dict[bytes, asyncio.Task[User | None]] = {}

    async def authenticate(self, credential: Credential | None) -> Verdict:
        """401 when there is no credential, or it is wrong or expired."""
        if credential is None:
            raise unauthenticated("credentials are missing: send HTTP Basic, a session cookie or a bearer token")
        if isinstance(credential, PasswordCredential):
            user = await self._check_password(credential)
            if user is None:
                raise unauthenticated("the user name or the password is wrong")
            return Verdict(user.name, user.is_admin, self._cache_seconds)
        return await self._check_session(credential)

    async def _check_session(self, credential: TokenCredential | CookieCredential) -> Verdict:
        found = await self._accounts.find_session(digest(credential.token))
        now = self._now()
        if found is None or not found[0].is_valid(now):
            raise unauthenticated("the session is unknown or has expired: log on again")
        session, user = found
        if isinstance(credential, CookieCredential) and credential.is_write:
            if credential.csrf_token is None:
                raise forbidden("csrftoken: missing; a POST, PUT or DELETE in a session sends it as a query parameter")
            if not session.csrf_matches(credential.csrf_token):
                raise forbidden("csrftoken: it is not the one of this session")
        remaining = (session.expires_at - now).total_seconds()
        return Verdict(user.name, user.is_admin, min(self._cache_seconds, remaining))

    async def _check_password(self, credential: PasswordCredential) -> User | None:
        key = self._verified.key(credential)
        user = self._verified.find(key)
        if user is not None:
            return user
        # Sixteen connections of one client that starts up cost one hash, not sixteen.
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._verify(key, credential))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _verify(self, key: bytes, credential: PasswordCredential) -> User | None:
        async with self._hashing:
            epoch = self._verified.epoch
            user = await self._accounts.find_user(credential.user)
            password_hash = user.password_hash if user else None
            if not await asyncio.to_thread(matches, password_hash, credential.password) or user is None:
                return None
        self._verified.store(key, user, epoch)
        return user
