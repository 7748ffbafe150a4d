"""Migrations, transactions, leases and the reconcile loop, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from servicekit.database import Database, UtcDateTime
from servicekit.leases import claim
from servicekit.reconcile import Next, ReconcileLoop
from servicekit.times import format_time, unix_milliseconds, utc_now

METADATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("made_at", UtcDateTime),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_expires_at", UtcDateTime),
)

ENV = """
import sys
from servicekit.database import env_main
import sqlalchemy as sa
env_main(sa.MetaData())
"""
REVISION = """
from alembic import op
import sqlalchemy as sa
revision = "20260101_0000"
down_revision = None
def upgrade():
    op.create_table(
        "things",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("made_at", sa.DateTime(timezone=True)),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
    )
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    (folder / "versions" / "20260101_0000_things.py").write_text(REVISION)
    return folder


async def test_concurrent_migrations_transactions_and_leases(database_url: str, migrations: Path) -> None:
    first, second = Database(database_url, "things"), Database(database_url, "things")
    await asyncio.gather(first.migrate(migrations), second.migrate(migrations))
    now = utc_now()
    async with first.session() as session:
        await session.execute(sa.insert(THINGS).values(id=1, made_at=now))
    with pytest.raises(RuntimeError):
        async with first.session() as session:
            await session.execute(sa.insert(THINGS).values(id=2))
            raise RuntimeError("the transaction must roll back")
    async with second.session(read_only=True) as session:
        rows = (await session.execute(sa.select(THINGS.c.id, THINGS.c.made_at))).all()
    assert [tuple(row) for row in rows] == [(1, now)]

    async def contend(database: Database, holder: str) -> bool:
        async with database.session() as session:
            return await claim(session, THINGS, 1, holder, 10, now)

    assert sorted(await asyncio.gather(contend(first, "a"), contend(second, "b"))) == [False, True]
    async with second.session() as session:
        assert await claim(session, THINGS, 1, "c", 10, now + timedelta(seconds=11))
    await first.close()
    await second.close()


async def test_sqlite_writers_wait_for_each_other(tmp_path: Path, migrations: Path) -> None:
    url = f"sqlite:///{tmp_path}/busy.sqlite"
    databases = [Database(url, "things") for _ in range(4)]
    await databases[0].migrate(migrations)

    async def read_then_write(database: Database, number: int) -> None:
        async with database.session() as session:
            await session.execute(sa.select(sa.func.count()).select_from(THINGS))
            await session.execute(sa.insert(THINGS).values(id=number))

    await asyncio.gather(*(read_then_write(databases[number % 4], number) for number in range(40)))
    async with databases[0].session(read_only=True) as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(THINGS)) == 40
    for database in databases:
        await database.close()


def test_unknown_database_is_refused() -> None:
    with pytest.raises(ValueError, match="sqlite, postgresql"):
        Database("mysql://x", "things")


async def test_loop_works_through_then_waits_for_wake_and_survives_errors(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []
    done = asyncio.Event()

    async def step() -> Next:
        steps.append("step")
        if len(steps) == 1:
            raise OSError("the database is away")
        if len(steps) == 4:
            done.set()
        return Next.AT_ONCE if len(steps) < 3 else Next.LATER

    loop = ReconcileLoop("test", step, later_seconds=60)
    with caplog.at_level(logging.CRITICAL, "servicekit.reconcile"):
        task = asyncio.create_task(loop.run())
        while len(steps) < 1:
            await asyncio.sleep(0)
        loop.wake()
        while len(steps) < 3:
            await asyncio.sleep(0)
        loop.wake()
        await asyncio.wait_for(done.wait(), 5)
        task.cancel()
    assert len(steps) == 4


async def test_loop_looks_less_often_at_what_takes_long_until_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    pauses: list[float] = []

    async def step() -> Next:
        if len(pauses) == 6:
            loop.wake()
        if len(pauses) == 8:
            loop.stop()
        return Next.SOON

    @contextlib.asynccontextmanager
    async def timeout(seconds: float) -> AsyncIterator[None]:
        nonlocal clock
        pauses.append(round(seconds, 3))
        clock += 4.0
        if loop._wake.is_set():
            yield
        else:
            raise TimeoutError

    monkeypatch.setattr("servicekit.reconcile.time.monotonic", lambda: clock)
    loop = ReconcileLoop("test", step, soon_seconds=0.3)
    monkeypatch.setattr("servicekit.reconcile.asyncio.timeout", timeout)
    await loop.run()
    assert pauses == [0.3, 0.3, 0.4, 0.6, 0.8, 1.0, 0.3, 0.3, 0.3]


def test_times_are_printed_in_utc() -> None:
    now = utc_now().replace(year=2026, month=1, day=2, hour=3, minute=4, second=5, microsecond=6000)
    assert format_time(now) == "2026-01-02 03:04:05"
    assert format_time(None) == ""
    assert unix_milliseconds(now) == 1767323045006.0
