"""What services share that run trials of studies: ids, values, one start at a time, what was deleted, results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dlmesh.models.v1 import hyperparameters_pb2
from dlmesh.training.v1 import trials_pb2
from servicekit.database import Database, UtcDateTime
from servicekit.errors import Code, ServiceError
from servicekit.single_flight import SingleFlight
from servicekit.times import utc_now
from servicekit.tombstones import Tombstones
from servicekit.trials import MAX_IDS, check_id, check_ids, deleted_trial, value_message, value_of

ID = "0123456789abcdef" * 2


def test_ids_are_those_of_a_uuid4() -> None:
    check_id("task_id", ID)
    check_ids("task_id", [ID] * MAX_IDS)


@pytest.mark.parametrize("wrong", ["", ID[1:], f"{ID}0", ID.upper(), "../" + ID[3:], f"{ID}\n", "\u0661" * 32])
def test_others_are_refused_by_field(wrong: str) -> None:
    for refused in (lambda: check_id("task_id", wrong), lambda: check_ids("task_id", [ID, wrong])):
        with pytest.raises(ServiceError) as caught:
            refused()
        assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, "task_id")


def test_too_many_ids_are_refused_at_once() -> None:
    with pytest.raises(ServiceError, match=r"^trial_ids: '10001 ids' is not valid.*at most 10000"):
        check_ids("trial_id", ["x"] * (MAX_IDS + 1))


def test_a_deleted_trial_is_not_found() -> None:
    error = deleted_trial("task_id", ID)
    assert (error.code, error.reason, error.metadata) == (Code.NOT_FOUND, "DELETED", {"task_id": ID})


@pytest.mark.parametrize("make", [trials_pb2.TrialValue, hyperparameters_pb2.HyperparameterValue])
@pytest.mark.parametrize("value", [True, False, 0, -(2**63), 2**63 - 1, 0.0, 0.1 + 0.2, float("inf"), "", "a"])
def test_values_come_back_as_what_they_were(make: Any, value: float | str | bool) -> None:
    message = make.FromString(value_message(make, value).SerializeToString())
    found = value_of(message, "momentum")
    assert (found, type(found)) == (value, type(value))


def test_a_value_that_was_not_given_is_refused_by_place() -> None:
    with pytest.raises(ServiceError, match=r"^hyperParams\.momentum: '' is not valid.*has to be given"):
        value_of(trials_pb2.TrialValue(), "hyperParams.momentum")


class Work:
    """What is done once, and held until it may go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return number


async def waiting(flight: SingleFlight[int], key: str, work: Work) -> asyncio.Task[int]:
    """A call that waits for its work."""
    call = asyncio.create_task(flight(key, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return call


async def test_calls_for_one_key_are_one_work() -> None:
    flight, work, other = SingleFlight[int]("trial"), Work(), Work()
    calls = [await waiting(flight, "a", work) for _ in range(3)] + [await waiting(flight, "b", other)]
    assert (work.begun, other.begun) == (1, 1)
    work.may_end.set()
    other.may_end.set()
    assert await asyncio.gather(*calls) == [1, 1, 1, 1]
    # What comes later begins anew.
    assert await flight("a", work) == 2


async def test_work_outlives_its_callers() -> None:
    flight, work = SingleFlight[int]("trial"), Work()
    gone = await waiting(flight, "a", work)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert gone.cancelled()
    later = await waiting(flight, "a", work)
    work.may_end.set()
    assert (await later, work.begun) == (1, 1)


async def test_all_who_wait_get_the_error_and_nobody_may_be_left() -> None:
    flight, work = SingleFlight[int]("trial"), Work()
    work.error = ValueError("no room")
    calls = [await waiting(flight, "a", work) for _ in range(2)]
    calls[0].cancel()
    work.may_end.set()
    with pytest.raises(ValueError, match="no room"):
        await calls[1]
    alone = await waiting(flight, "b", work)
    alone.cancel()
    await asyncio.gather(*calls, alone, return_exceptions=True)
    work.error = None
    assert await flight("a", work) == 3


METADATA = sa.MetaData()
DELETED = sa.Table(
    "deleted_things",
    METADATA,
    sa.Column("uid", sa.String(32), primary_key=True),
    sa.Column("deleted_at", UtcDateTime, nullable=False),
)
THINGS = sa.Table("things", METADATA, sa.Column("uid", sa.String(32), primary_key=True))


class Room:
    """A table of things and one of those that were deleted."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, "things")
        self.tombstones = Tombstones(self.database, DELETED.c.uid, DELETED.c.deleted_at)

    async def make(self, uid: str) -> bool:
        async with self.database.session() as session:
            if not await self.tombstones.claim(session, uid, utc_now()):
                return False
            # Whatever else there is to do.
            await asyncio.sleep(0.001)
            await session.execute(sa.insert(THINGS).values(uid=uid))
        return True

    async def delete(self, *uids: str) -> list[str]:
        """Those that were not deleted before."""
        async with self.database.session() as session:
            noted = await self.tombstones.note(session, sorted(uids), utc_now())
            await session.execute(sa.delete(THINGS).where(THINGS.c.uid.in_(uids)))
        return sorted(noted)

    async def is_noted(self, uid: str) -> bool:
        async with self.database.session(read_only=True) as session:
            return (await session.execute(self.tombstones.noted(uid))).first() is not None

    async def there_are(self) -> set[str]:
        async with self.database.session(read_only=True) as session:
            return set((await session.execute(sa.select(THINGS.c.uid))).scalars())


ENV = """
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
    op.create_table("things", sa.Column("uid", sa.String(32), primary_key=True))
    op.create_table(
        "deleted_things",
        sa.Column("uid", sa.String(32), primary_key=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
    )
"""


@pytest.fixture
async def room(tmp_path: Path, database_url: str) -> AsyncIterator[Room]:
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "20260101_0000_things.py").write_text(REVISION)
    room = Room(database_url)
    await room.database.migrate(tmp_path)
    yield room
    await room.database.close()


async def test_what_was_deleted_is_not_made_also_when_it_never_came(room: Room) -> None:
    assert await room.make("a")
    assert not await room.is_noted("a")
    assert await room.delete("a", "never") == ["a", "never"]
    assert await room.delete("never", "b") == ["b"]
    for uid in ("a", "never", "b"):
        assert (await room.is_noted(uid), await room.make(uid)) == (True, False)
    assert await room.there_are() == set()
    assert await room.make("c")


async def test_of_a_start_and_a_deletion_at_once_nothing_is_left(room: Room) -> None:
    for number in range(20):
        uid = f"u{number}"
        calls = [room.make(uid), room.delete(uid)]
        await asyncio.gather(*(calls if number % 2 else calls[::-1]))
        assert (await room.there_are(), await room.is_noted(uid)) == (set(), True)


async def test_deletions_of_many_wait_for_each_other(room: Room) -> None:
    uids = [f"u{number:03}" for number in range(500)]
    found = await asyncio.gather(room.delete(*uids), room.delete(*uids[::-1]))
    assert sorted(found[0] + found[1]) == uids


async def test_old_notes_are_forgotten_but_of_what_is_still_there(room: Room) -> None:
    await room.delete("a", "b")
    async with room.database.session() as session:
        await session.execute(sa.insert(THINGS).values(uid="b"))
    for before, left in (
        (utc_now() - timedelta(days=1), [True, True]),
        (utc_now() + timedelta(seconds=1), [False, True]),
    ):
        async with room.database.session() as session:
            await room.tombstones.forget(session, before, sa.select(THINGS.c.uid))
        assert [await room.is_noted(uid) for uid in ("a", "b")] == left
