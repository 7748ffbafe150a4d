"""The repository on every supported database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from dataset_fakes import make_dataset
from datasets_service.domain.dataset import ImportedRecords, Split, Status
from datasets_service.storage import MIGRATIONS
from datasets_service.storage.repository import SqlStorage
from datasets_service.storage.tables import Base
from datasets_service.usecases.ports import Removal
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "datasets")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


@pytest.fixture
def storage(database: Database) -> SqlStorage:
    return SqlStorage(database)


async def test_a_dataset_comes_back_as_it_was(storage: SqlStorage) -> None:
    dataset = make_dataset()
    async with storage.transaction() as datasets:
        await datasets.add(dataset)
    records = ImportedRecords("h", 9, "m", {"train": Split("/t", 3, {"b": 1, "a": 2})}, 1, ("x",))
    done = replace(dataset, accepted=True, status=Status.FINISHED, records=records, started_at=utc_now())
    async with storage.transaction() as datasets:
        await datasets.save_state(done)
    async with storage.snapshot() as datasets:
        found = await datasets.find("digits")
        assert found == done
        assert found.records is not None
        assert list(found.records.splits["train"].labels) == ["b", "a"]
        assert await datasets.list_page("alice", "", 10) == [done]
        assert await datasets.list_active() == []
        assert await datasets.find("other") is None


async def test_pages_follow_each_other_by_name(storage: SqlStorage) -> None:
    names = ["a", "B", "c-1", "c", "z", "é"]
    async with storage.transaction() as datasets:
        for number, name in enumerate(names):
            owner = "bob" if name == "z" else "alice"
            await datasets.add(make_dataset(uid=str(number), job_id=str(number), name=name, owner=owner))
    for owner, expected in ((None, set(names)), ("alice", set(names) - {"z"}), ("carol", set())):
        seen: list[str] = []
        async with storage.snapshot() as datasets:
            while page := await datasets.list_page(owner, seen[-1] if seen else "", 2):
                assert len(page) <= 2
                seen += [dataset.name for dataset in page]
        assert len(seen) == len(expected)
        assert set(seen) == expected


async def test_a_name_is_taken_once(storage: SqlStorage) -> None:
    async with storage.transaction() as datasets:
        await datasets.add(make_dataset())
    with pytest.raises(ServiceError) as caught:
        async with storage.transaction() as datasets:
            await datasets.add(make_dataset(uid="other", job_id="other", owner="bob"))
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_a_final_state_and_a_stop_survive_a_late_writer(storage: SqlStorage) -> None:
    dataset = make_dataset()
    async with storage.transaction() as datasets:
        await datasets.add(dataset)
        await datasets.request_stop(dataset.uid)
    async with storage.transaction() as datasets:
        await datasets.save_state(replace(dataset, status=Status.STOPPED))
        await datasets.save_state(replace(dataset, status=Status.RUNNING))
    async with storage.snapshot() as datasets:
        found = await datasets.find("digits")
    assert found == replace(dataset, status=Status.STOPPED, stop_requested=True)


async def test_removing_frees_the_name_and_orders_the_rest_once(storage: SqlStorage) -> None:
    dataset = make_dataset()
    async with storage.transaction() as datasets:
        await datasets.add(dataset)
    for _ in range(2):
        async with storage.transaction() as datasets:
            await datasets.remove(dataset)
    async with storage.transaction() as datasets:
        await datasets.add(make_dataset(uid="other", job_id="other"))
        assert await datasets.list_removals() == [Removal(dataset.uid, dataset.job_id)]
        await datasets.forget_removal(dataset.uid)
        assert await datasets.list_removals() == []


async def test_the_migrations_make_the_tables(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    async with database.engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert differences == []
