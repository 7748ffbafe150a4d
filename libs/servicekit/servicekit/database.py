"""One database and one migration history a service: SQLite embedded by default, PostgreSQL by its URL."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.types import TypeDecorator

from servicekit.settings import SettingError

SQLITE_BUSY_SECONDS = 30


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes on both databases (SQLite would drop the zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime; use servicekit.times.utc_now")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """Engine, sessions and migrations of one service.

    `url` is what DLMESH_DATABASE_URL holds: `sqlite:///file` or `postgresql://...`. On PostgreSQL each service lives in
    a schema of its own name, so one setting serves all of them and none can reach another's tables by accident.
    """

    def __init__(self, url: str, service: str) -> None:
        self.service = service
        self.url = _with_async_driver(url)
        self._engine = _create_engine(self.url, service)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    @property
    def engine(self) -> AsyncEngine:
        return self._engine

    @asynccontextmanager
    async def session(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends well, rolled back when it raises.

        On SQLite a transaction takes the write lock when it begins; `read_only` ones run beside it.
        """
        async with self._sessions() as session, session.begin():
            if read_only:
                await session.connection(execution_options={"read_only": True})
            yield session

    async def migrate(self, migrations: Path) -> None:
        """Bring the schema to the newest revision; several processes may call it at once."""
        if self.url.get_backend_name() == "postgresql":
            async with self._engine.begin() as connection:
                await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": self.service})
                await connection.execute(sa.text(f'CREATE SCHEMA IF NOT EXISTS "{self.service}"'))
                await connection.run_sync(_upgrade, migrations)
            return
        # SQLite has no advisory lock and alembic opens several statements: a lock file beside the database serialises.
        with await asyncio.to_thread(_lock_beside, self.url.database):
            async with self._engine.begin() as connection:
                await connection.run_sync(_upgrade, migrations)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def env_main(target_metadata: sa.MetaData) -> None:
    """The whole of a service's migrations/env.py; the connection comes from `Database.migrate`."""
    connection: Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _upgrade(connection: Connection, migrations: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _with_async_driver(text: str) -> URL:
    try:
        url = make_url(text)
    except sa.exc.ArgumentError:
        # It may hold a password, so it is not shown.
        raise SettingError(
            "DLMESH_DATABASE_URL: not a URL; allowed: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        return url.set(drivername="sqlite+aiosqlite")
    if backend in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+asyncpg")
    raise SettingError(f"DLMESH_DATABASE_URL: {backend!r} is not supported; allowed: sqlite, postgresql")


def _create_engine(url: URL, service: str) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url,
            pool_size=5,
            max_overflow=10,
            pool_pre_ping=True,
            connect_args={"server_settings": {"search_path": service, "application_name": f"dlmesh-{service}"}},
        )
    engine = create_async_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is switched off so that BEGIN IMMEDIATE below is the only one.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={SQLITE_BUSY_SECONDS}000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    # A deferred transaction that reads first and writes then fails at once when another wrote in between (no busy
    # wait helps); read-only ones say so with the execution option and stay concurrent.
    mode = "" if connection.get_execution_options().get("read_only") else " IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN{mode}")


def _lock_beside(database: str | None) -> AbstractContextManager[object]:
    if not database or database == ":memory:":
        return nullcontext()
    file = Path(f"{database}.migrate.lock").open("w")  # noqa: SIM115  held until the caller closes it
    fcntl.flock(file, fcntl.LOCK_EX)
    return file
