"""Create, list and delete users, change passwords, and keep the first administrator."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from servicekit.errors import already_exists, conflict, forbidden, not_found
from servicekit.identity import Identity

from gateway_service.domain.passwords import hash_password, matches
from gateway_service.domain.users import Role, User, check_password, check_user_name
from gateway_service.usecases.authenticate import VerifiedPasswords
from gateway_service.usecases.ports import Accounts

log = logging.getLogger(__name__)


class Users:
    """Every method takes the caller and refuses with 403 what they may not do."""

    def __init__(
        self, accounts: Accounts, verified: VerifiedPasswords, now: Callable[[], datetime], admin_user: str
    ) -> None:
        self._accounts = accounts
        self._verified = verified
        self._now = now
        self._admin_user = admin_user

    async def create_user(self, caller: Identity, name: str, password: str, role: str) -> User:
        """409 when the name is taken."""
        caller.require_admin("create users")
        check_user_name(name)
        check_password(password)
        parsed_role = Role.parse(role)
        user = User(name, await asyncio.to_thread(hash_password, password), parsed_role, self._now())
        if not await self._accounts.add_user(user):
            raise already_exists("user", name)
        return user

    async def list_users(self, caller: Identity) -> list[User]:
        """All users by name."""
        caller.require_admin("list users")
        return await self._accounts.list_users()

    async def delete_user(self, caller: Identity, name: str) -> None:
        """The configured administrator and the caller stay: someone must be able to undo what was done."""
        caller.require_admin("delete users")
        if name in (self._admin_user, caller.user):
            raise conflict(f"user {name!r} cannot be deleted: it is the platform's administrator or yourself")
        if not await self._accounts.remove_user(name):
            raise not_found("user", name)
        self._verified.forget(name)

    async def set_password(self, caller: Identity, name: str, password: str) -> None:
        """An administrator sets anyone's, a user their own. Ends all sessions of `name`."""
        if not caller.is_admin and caller.user != name:
            raise forbidden("only an administrator may change another user's password")
        check_password(password)
        if not await self._accounts.set_password_hash(name, await asyncio.to_thread(hash_password, password)):
            raise not_found("user", name)
        self._verified.forget(name)


async def ensure_administrator(
    accounts: Accounts, now: Callable[[], datetime], name: str, password: str | None, password_file: Path
) -> None:
    """Make `name` an administrator who can log on.

    With `password` (from the environment) the account takes it, also when it was another one before. Without, a
    password is drawn at the first start, kept in `password_file` (0600) and printed once.
    """
    check_user_name(name)
    user = await accounts.find_user(name)
    if user is not None and password is None:
        return
    if user is not None and password is not None:
        if not await asyncio.to_thread(matches, user.password_hash, password):
            await accounts.set_password_hash(name, await asyncio.to_thread(hash_password, password))
            log.info("the password of %s was changed to the one in the environment", name)
        return
    if password is None:
        password = _read_or_create_password(password_file)
        print(f"dlmesh: user {name}, password {password} (kept in {password_file})", flush=True)
    password_hash = await asyncio.to_thread(hash_password, password)
    # False when another process was faster; its account is as good.
    await accounts.add_user(User(name, password_hash, Role.ADMIN, now()))


def _read_or_create_password(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    password = secrets.token_urlsafe(12)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
    return password
