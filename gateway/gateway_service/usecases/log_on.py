"""Log on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from gateway_service.domain.sessions import IssuedSession, issue_session
from gateway_service.usecases.ports import Accounts


class Sessions:
    """Issues sessions to callers that Envoy has authenticated already."""

    def __init__(self, accounts: Accounts, now: Callable[[], datetime], session_seconds: float) -> None:
        self._accounts = accounts
        self._now = now
        self._session_seconds = session_seconds

    async def log_on(self, user: str) -> IssuedSession:
        """A new session of `user`; those they have stay valid."""
        now = self._now()
        issued = issue_session(user, now, self._session_seconds)
        await self._accounts.add_session(issued.session, now)
        return issued
