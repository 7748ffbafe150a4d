"""Reading credentials from request headers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

SESSION_COOKIE = "platform.rest.token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class PasswordCredential:
    """HTTP Basic."""

    user: str
    password: str


@dataclass(frozen=True)
class TokenCredential:
    """A session token sent on purpose, in a header: no other site can make a browser do that."""

    token: str


@dataclass(frozen=True)
class CookieCredential:
    """A session token that a browser sends by itself; a write must come with the session's csrftoken."""

    token: str
    csrf_token: str | None
    is_write: bool


Credential = PasswordCredential | TokenCredential | CookieCredential


def read_credential(headers: Mapping[str, str], method: str, path: str) -> Credential | None:
    """The one credential that counts: `Authorization`, else `X-Auth-Token`, else the session cookie; None when there
    is none, or it cannot be read. `headers` has lower-case keys, `path` its query.

    Envoy's credential cache follows the same order (gateway.lua).
    """
    authorization = headers.get("authorization")
    if authorization is not None:
        return _read_authorization(authorization)
    token = headers.get("x-auth-token")
    if token is not None:
        return TokenCredential(token.strip())
    token = _cookie(headers.get("cookie", ""))
    if token is None:
        return None
    values = parse_qs(urlsplit(path).query).get("csrftoken", [])
    return CookieCredential(token, values[-1] if values else None, method.upper() not in SAFE_METHODS)


def _read_authorization(value: str) -> Credential | None:
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return TokenCredential(rest.strip())
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return PasswordCredential(user, password) if colon else None


def _cookie(header: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(SESSION_COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and morsel.value else None
