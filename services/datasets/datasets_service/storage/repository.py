"""Datasets in the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from datasets_service.domain.dataset import Dataset, ImportedRecords, InstanceGroup, Split, Status
from datasets_service.domain.request import ImportOptions
from datasets_service.domain.words import Backend, SourceType
from datasets_service.storage.tables import DatasetRow, RemovalRow
from datasets_service.usecases.ports import Datasets, Removal

_ACTIVE = [str(status) for status in Status if not status.is_final]
_STATE = ("status", "status_message", "accepted", "driver_id", "started_at", "ended_at", "records")


class SqlDatasets:
    """`ports.Datasets` in one session; a dataset's fields are the table's columns."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, dataset: Dataset) -> None:
        self._session.add(DatasetRow(**_to_columns(dataset)))
        try:
            await self._session.flush()
        except IntegrityError as error:
            raise already_exists("dataset", dataset.name) from error

    async def find(self, name: str) -> Dataset | None:
        found = await self._select(sa.select(DatasetRow).where(DatasetRow.name == name))
        return found[0] if found else None

    async def list_page(self, owner: str | None, after: str, limit: int) -> list[Dataset]:
        query = sa.select(DatasetRow).where(DatasetRow.name > after)
        if owner is not None:
            query = query.where(DatasetRow.owner == owner)
        return await self._select(query.order_by(DatasetRow.name).limit(limit))

    async def list_active(self) -> list[Dataset]:
        return await self._select(
            sa.select(DatasetRow).where(DatasetRow.status.in_(_ACTIVE)).order_by(DatasetRow.created_at, DatasetRow.uid)
        )

    async def save_state(self, dataset: Dataset) -> None:
        columns = _to_columns(dataset)
        await self._session.execute(
            sa.update(DatasetRow)
            .where(DatasetRow.uid == dataset.uid, DatasetRow.status.in_(_ACTIVE))
            .values({name: columns[name] for name in _STATE})
        )

    async def request_stop(self, uid: str) -> None:
        await self._session.execute(sa.update(DatasetRow).where(DatasetRow.uid == uid).values(stop_requested=True))

    async def remove(self, dataset: Dataset) -> None:
        deleted = await self._session.scalar(
            sa.delete(DatasetRow).where(DatasetRow.uid == dataset.uid).returning(DatasetRow.uid)
        )
        # Two deletions at once: the second finds no row and orders nothing.
        if deleted is not None:
            self._session.add(RemovalRow(uid=dataset.uid, job_id=dataset.job_id))

    async def list_removals(self) -> list[Removal]:
        return [Removal(row.uid, row.job_id) for row in await self._session.scalars(sa.select(RemovalRow))]

    async def forget_removal(self, uid: str) -> None:
        await self._session.execute(sa.delete(RemovalRow).where(RemovalRow.uid == uid))

    async def _select(self, query: sa.Select[DatasetRow]) -> list[Dataset]:
        return [_to_dataset(row) for row in await self._session.scalars(query)]


class SqlStorage:
    """`ports.Storage`: the unit of work is a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def transaction(self) -> AbstractAsyncContextManager[Datasets]:
        return self._unit(read_only=False)

    def snapshot(self) -> AbstractAsyncContextManager[Datasets]:
        return self._unit(read_only=True)

    @asynccontextmanager
    async def _unit(self, *, read_only: bool) -> AsyncIterator[Datasets]:
        async with self._database.session(read_only=read_only) as session:
            yield SqlDatasets(session)


def _to_columns(dataset: Dataset) -> dict[str, Any]:
    columns = asdict(dataset)
    return columns | {name: str(columns[name]) for name in ("status", "source_type", "backend")}


def _to_dataset(row: DatasetRow) -> Dataset:
    columns = {column.key: getattr(row, column.key) for column in sa.inspect(DatasetRow).column_attrs}
    return Dataset(
        **{
            **columns,
            "group": InstanceGroup(**columns["group"]),
            "options": ImportOptions.from_json(columns["options"]),
            "source_type": SourceType(columns["source_type"]),
            "backend": Backend(columns["backend"]),
            "status": Status(columns["status"]),
            "records": None if columns["records"] is None else records_from(columns["records"]),
        }
    )


def records_from(content: dict[str, Any]) -> ImportedRecords:
    """From their JSON, as the worker and the table write it."""
    return ImportedRecords(
        content_hash=content["content_hash"],
        size_bytes=content["size_bytes"],
        mean_file=content["mean_file"],
        splits={
            name: Split(path=split["path"], count=split["count"], labels=split["labels"])
            for name, split in content["splits"].items()
        },
        unreadable_count=content["unreadable_count"],
        unreadable=tuple(content["unreadable"]),
    )
