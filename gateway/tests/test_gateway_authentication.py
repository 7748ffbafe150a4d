"""Credentials, passwords, sessions and users against a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from gateway_service.domain import passwords
from gateway_service.domain.credentials import (
    CookieCredential,
    PasswordCredential,
    TokenCredential,
    read_credential,
)
from gateway_service.storage.accounts import DatabaseAccounts
from gateway_service.usecases import authenticate as authenticate_module
from gateway_service.usecases.authenticate import Authenticator, VerifiedPasswords
from gateway_service.usecases.log_on import Sessions
from gateway_service.usecases.manage_users import Users, ensure_administrator
from gateway_service.usecases.platform_health import PlatformHealth
from gateway_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity
from servicekit.times import utc_now

ADMIN = Identity("Admin", is_admin=True)
ALICE = Identity("alice")
PASSWORD = "correct horse"


class Clock:
    """Both clocks of the use cases, moved by hand."""

    def __init__(self) -> None:
        self.moment = utc_now()

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class House:
    """The use cases over one database."""

    accounts: DatabaseAccounts
    authenticator: Authenticator
    sessions: Sessions
    users: Users
    clock: Clock


@pytest.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    database = Database(database_url, "gateway")
    await database.migrate(MIGRATIONS)
    accounts, clock = DatabaseAccounts(database), Clock()
    verified = VerifiedPasswords(30, max_entries=2, clock=clock.monotonic)
    await ensure_administrator(accounts, clock.now, "Admin", PASSWORD, tmp_path / "admin_password")
    yield House(
        accounts,
        Authenticator(accounts, verified, clock.now, cache_seconds=30),
        Sessions(accounts, clock.now, session_seconds=8 * 3600),
        Users(accounts, verified, clock.now, "Admin"),
        clock,
    )
    await database.close()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "method", "path", "expected"),
    [
        ({}, "GET", "/", None),
        ({"authorization": basic("a", "b:c")}, "GET", "/", PasswordCredential("a", "b:c")),
        (
            {"authorization": "basic " + base64.b64encode("ü:é".encode()).decode()},
            "GET",
            "/",
            PasswordCredential("ü", "é"),
        ),
        ({"authorization": "Basic !!!"}, "GET", "/", None),
        ({"authorization": "Basic " + base64.b64encode(b"nocolon").decode()}, "GET", "/", None),
        ({"authorization": "Basic /w=="}, "GET", "/", None),
        ({"authorization": "Digest x"}, "GET", "/", None),
        ({"authorization": "Bearer "}, "GET", "/", None),
        ({"authorization": "Bearer t"}, "POST", "/", TokenCredential("t")),
        ({"x-auth-token": "t"}, "POST", "/", TokenCredential("t")),
        # A credential that cannot be read is not passed over for a weaker one.
        ({"authorization": "Digest x", "cookie": "platform.rest.token=t"}, "GET", "/", None),
        ({"authorization": "Bearer a", "x-auth-token": "b"}, "GET", "/", TokenCredential("a")),
        ({"cookie": "other=1"}, "GET", "/", None),
        ({"cookie": "x=1; platform.rest.token=t"}, "GET", "/", CookieCredential("t", None, False)),
        ({"cookie": "platform.rest.token=t"}, "DELETE", "/a?b=1&csrftoken=c", CookieCredential("t", "c", True)),
    ],
)
def test_credentials_are_read_in_order(headers, method, path, expected) -> None:
    assert read_credential(headers, method, path) == expected


async def test_password_is_verified_once_then_remembered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(password_hash: str | None, password: str) -> bool:
        calls.append(password)
        return passwords.matches(password_hash, password)

    monkeypatch.setattr(authenticate_module, "matches", counting)
    good = PasswordCredential("Admin", PASSWORD)
    verdicts = await asyncio.gather(*(house.authenticator.authenticate(good) for _ in range(8)))
    assert {(verdict.user, verdict.is_admin) for verdict in verdicts} == {("Admin", True)}
    await house.authenticator.authenticate(good)
    assert len(calls) == 1
    house.clock.advance(31)
    await house.authenticator.authenticate(good)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "credential", [None, PasswordCredential("Admin", "no"), PasswordCredential("nobody", PASSWORD)]
)
async def test_wrong_credentials_are_401(house: House, credential: PasswordCredential | None) -> None:
    with pytest.raises(ServiceError) as refusal:
        await house.authenticator.authenticate(credential)
    assert refusal.value.code is Code.UNAUTHENTICATED
    assert PASSWORD not in refusal.value.message


def test_unknown_user_costs_the_same_work() -> None:
    known = passwords.hash_password(PASSWORD)

    def seconds(password_hash: str | None) -> float:
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            assert not passwords.matches(password_hash, "wrong")
            best = min(best, time.perf_counter() - started)
        return best

    seconds(None)
    assert seconds(None) > seconds(known) / 3


async def test_password_change_is_effective_at_once_and_ends_sessions(house: House) -> None:
    await house.users.create_user(ADMIN, "alice", PASSWORD, "user")
    old = PasswordCredential("alice", PASSWORD)
    assert not (await house.authenticator.authenticate(old)).is_admin
    issued = await house.sessions.log_on("alice")
    await house.users.set_password(ALICE, "alice", "another one")
    for credential in (old, TokenCredential(issued.token)):
        with pytest.raises(ServiceError):
            await house.authenticator.authenticate(credential)
    await house.authenticator.authenticate(PasswordCredential("alice", "another one"))


async def test_verification_that_overlaps_a_change_is_not_remembered(house: House) -> None:
    verified = VerifiedPasswords(30)
    credential = PasswordCredential("Admin", PASSWORD)
    user = await house.accounts.find_user("Admin")
    assert user is not None
    epoch = verified.epoch
    verified.forget("Admin")
    verified.store(verified.key(credential), user, epoch)
    assert verified.find(verified.key(credential)) is None


async def test_remembered_passwords_are_bounded(house: House) -> None:
    verified = VerifiedPasswords(30, max_entries=2)
    user = await house.accounts.find_user("Admin")
    assert user is not None
    keys = [verified.key(PasswordCredential("Admin", str(number))) for number in range(3)]
    for key in keys:
        verified.store(key, user, verified.epoch)
    assert [verified.find(key) is not None for key in keys] == [False, True, True]


async def test_session_needs_its_csrf_token_for_writes_and_ends(house: House) -> None:
    issued = await house.sessions.log_on("Admin")

    async def code(csrf_token: str | None, is_write: bool) -> Code | None:
        try:
            await house.authenticator.authenticate(CookieCredential(issued.token, csrf_token, is_write))
        except ServiceError as error:
            return error.code
        return None

    assert await code(None, False) is None
    assert await code(issued.csrf_token, True) is None
    assert await code(None, True) is Code.PERMISSION_DENIED
    assert await code("wrong", True) is Code.PERMISSION_DENIED
    house.clock.advance(8 * 3600 - 5)
    verdict = await house.authenticator.authenticate(TokenCredential(issued.token))
    assert verdict.lifetime_seconds == pytest.approx(5)
    house.clock.advance(5)
    assert await code(issued.csrf_token, True) is Code.UNAUTHENTICATED
    await house.sessions.log_on("Admin")
    assert await house.accounts.find_session(issued.session.token_digest) is None, "ended sessions are swept"


async def test_user_rules(house: House) -> None:
    async def code(call) -> Code | None:
        try:
            await call
        except ServiceError as error:
            return error.code
        return None

    users = house.users
    assert await code(users.create_user(ADMIN, "alice", PASSWORD, "")) is None
    assert await code(users.create_user(ADMIN, "alice", PASSWORD, "user")) is Code.ALREADY_EXISTS
    assert await code(users.create_user(ADMIN, "bob", "short", "user")) is Code.INVALID_ARGUMENT
    assert await code(users.create_user(ADMIN, "bob", PASSWORD, "root")) is Code.INVALID_ARGUMENT
    assert await code(users.create_user(ADMIN, "a:b", PASSWORD, "user")) is Code.INVALID_ARGUMENT
    assert await code(users.create_user(ADMIN, "bob", PASSWORD, "Admin")) is None
    assert await code(users.create_user(ALICE, "carol", PASSWORD, "user")) is Code.PERMISSION_DENIED
    assert await code(users.list_users(ALICE)) is Code.PERMISSION_DENIED
    assert await code(users.set_password(ALICE, "bob", PASSWORD)) is Code.PERMISSION_DENIED
    assert await code(users.set_password(ADMIN, "nobody", PASSWORD)) is Code.NOT_FOUND
    assert await code(users.delete_user(ALICE, "bob")) is Code.PERMISSION_DENIED
    assert await code(users.delete_user(ADMIN, "Admin")) is Code.ABORTED
    assert await code(users.delete_user(ADMIN, "nobody")) is Code.NOT_FOUND
    assert [(user.name, user.role) for user in await users.list_users(ADMIN)] == [
        ("Admin", "admin"),
        ("alice", "user"),
        ("bob", "admin"),
    ]
    assert await code(users.delete_user(ADMIN, "bob")) is None
    assert await house.accounts.find_user("bob") is None


async def test_first_administrator(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "generated"
    for _ in range(2):
        await ensure_administrator(house.accounts, utc_now, "root", None, file)
    password = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out.count(password) == 1
    await house.authenticator.authenticate(PasswordCredential("root", password))
    await ensure_administrator(house.accounts, utc_now, "root", "from environment", file)
    house.clock.advance(31)
    await house.authenticator.authenticate(PasswordCredential("root", "from environment"))
    with pytest.raises(ServiceError):
        await house.authenticator.authenticate(PasswordCredential("root", password))


async def test_health_is_probed_once_for_many_callers() -> None:
    clock = Clock()

    class Probe:
        calls = 0
        state = "SERVING"

        async def probe(self) -> dict[str, str]:
            self.calls += 1
            return {"datasets": self.state}

    probe = Probe()
    health = PlatformHealth(probe, clock=clock.monotonic)
    assert {ok for ok, _ in await asyncio.gather(*(health.check() for _ in range(5)))} == {True}
    assert probe.calls == 1
    probe.state = "UNREACHABLE"
    clock.advance(1)
    assert await health.check() == (False, {"datasets": "UNREACHABLE"})
