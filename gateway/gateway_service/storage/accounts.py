"""Users and sessions in the database."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from servicekit.database import Database
from sqlalchemy.exc import IntegrityError

from gateway_service.domain.sessions import Session
from gateway_service.domain.users import Role, User
from gateway_service.storage.tables import SessionRow, UserRow


class DatabaseAccounts:
    """Implements `usecases.ports.Accounts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_user(self, name: str) -> User | None:
        async with self._database.session(read_only=True) as session:
            row = await session.get(UserRow, name)
            return _user(row) if row is not None else None

    async def list_users(self) -> list[User]:
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(sa.select(UserRow).order_by(UserRow.name))
            return [_user(row) for row in rows]

    async def add_user(self, user: User) -> bool:
        try:
            async with self._database.session() as session:
                session.add(
                    UserRow(
                        name=user.name,
                        password_hash=user.password_hash,
                        role=user.role.value,
                        created_at=user.created_at,
                    )
                )
        except IntegrityError:
            return False
        return True

    async def set_password_hash(self, name: str, password_hash: str) -> bool:
        async with self._database.session() as session:
            row = await session.get(UserRow, name)
            if row is None:
                return False
            row.password_hash = password_hash
            await session.execute(sa.delete(SessionRow).where(SessionRow.user_name == name))
            return True

    async def remove_user(self, name: str) -> bool:
        async with self._database.session() as session:
            row = await session.get(UserRow, name)
            if row is None:
                return False
            await session.execute(sa.delete(SessionRow).where(SessionRow.user_name == name))
            await session.delete(row)
            return True

    async def find_session(self, token_digest: str) -> tuple[Session, User] | None:
        async with self._database.session(read_only=True) as session:
            query = (
                sa.select(SessionRow, UserRow)
                .join(UserRow, UserRow.name == SessionRow.user_name)
                .where(SessionRow.token_digest == token_digest)
            )
            found = (await session.execute(query)).first()
            if found is None:
                return None
            row, user = found
            return Session(row.token_digest, row.csrf_digest, row.user_name, row.expires_at), _user(user)

    async def add_session(self, session_to_add: Session, now: datetime) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(SessionRow).where(SessionRow.expires_at <= now))
            session.add(
                SessionRow(
                    token_digest=session_to_add.token_digest,
                    csrf_digest=session_to_add.csrf_digest,
                    user_name=session_to_add.user,
                    expires_at=session_to_add.expires_at,
                )
            )


def _user(row: UserRow) -> User:
    return User(row.name, row.password_hash, Role(row.role), row.created_at)
