"""Repositories of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, Generic

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists
from servicekit.jobs import InstanceGroup
from sqlalchemy.exc import IntegrityError

from training_service.domain.runs import Run, Status, Training, Validation
from training_service.storage.tables import MetricRow, TrainingRow, ValidationRow
from training_service.usecases.ports import R

_FINAL = [str(status) for status in Status if status.is_final]


class SqlRuns(Generic[R]):
    """Runs of one kind in their table; the domain object's fields are the table's columns."""

    def __init__(self, database: Database, kind: str, row: Any, make: Callable[..., R]) -> None:
        self._database, self._kind = database, kind
        self._row, self._make = row, make

    async def add(self, run: R) -> None:
        try:
            async with self._database.session() as session:
                session.add(self._row(**_to_columns(run)))
        except IntegrityError as error:
            raise already_exists(self._kind, run.name) from error

    async def find(self, model_uid: str, name: str) -> R | None:
        found = await self._select(self._row.model_uid == model_uid, self._row.name == name)
        return found[0] if found else None

    async def of_model(self, model_uid: str) -> list[R]:
        return await self._select(self._row.model_uid == model_uid)

    async def active(self) -> list[R]:
        return await self._select(self._row.status.not_in(_FINAL))

    async def save_state(self, run: R) -> None:
        state: dict[str, Any] = {
            "status": str(run.status),
            "status_message": run.status_message,
            "progress": run.progress,
            "driver_id": run.driver_id,
            "accepted": run.accepted,
        }
        if isinstance(run, Validation):
            state["pairs"] = [list(pair) for pair in run.pairs]
        elif isinstance(run, Training):
            state["workers"] = run.workers
        await self._update(run.uid, **state)

    async def request_stop(self, uid: str) -> None:
        await self._update(uid, stop_requested=True)

    async def delete(self, uid: str) -> None:
        async with self._database.session() as session:
            job_id = sa.select(self._row.job_id).where(self._row.uid == uid).scalar_subquery()
            await session.execute(sa.delete(MetricRow).where(MetricRow.job_id == job_id))
            await session.execute(sa.delete(self._row).where(self._row.uid == uid))

    async def models(self) -> list[tuple[str, str]]:
        async with self._database.session() as session:
            rows = await session.execute(sa.select(self._row.model_uid, self._row.model_name).distinct())
            return [(uid, name) for uid, name in rows]

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[R]:
        query = sa.select(self._row).where(*conditions).order_by(self._row.created_at, self._row.uid)
        async with self._database.session() as session:
            return [self._to_run(row) for row in await session.scalars(query)]

    async def _update(self, uid: str, **values: Any) -> None:
        async with self._database.session() as session:
            await session.execute(sa.update(self._row).where(self._row.uid == uid).values(**values))

    def _to_run(self, row: Any) -> R:
        values = {field.name: getattr(row, field.name) for field in fields(self._make)}  # type: ignore[arg-type]
        values["group"] = InstanceGroup(**values["group"])
        values["status"] = Status(values["status"])
        if "pairs" in values:
            values["pairs"] = [(name, value) for name, value in values["pairs"]]
        return self._make(**values)


class SqlTrainings(SqlRuns[Training]):
    """Trainings."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "training", TrainingRow, Training)

    async def by_job(self, job_id: str) -> Training | None:
        found = await self._select(TrainingRow.job_id == job_id)
        return found[0] if found else None


class SqlValidations(SqlRuns[Validation]):
    """Validations."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "validation", ValidationRow, Validation)


def _to_columns(run: Run) -> dict[str, Any]:
    return asdict(run) | {"status": str(run.status)}
