"""Repositories of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Generic

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, conflict, in_use, invalid, not_found
from servicekit.jobs import InstanceGroup
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from training_service.domain.runs import Run, Status, Training, Validation
from training_service.storage.tables import RemovalRow, TrainingRow, ValidationRow
from training_service.usecases.ports import R, RunModel

FINAL = [str(status) for status in Status if status.is_final]


class SqlRuns(Generic[R]):
    """Runs of one kind in their table; the domain object's fields are the table's columns."""

    def __init__(self, database: Database, kind: str, row: Any, make: Callable[..., R]) -> None:
        self._database, self._kind = database, kind
        self._row, self._make = row, make
        # Of those that can be asked for by name.
        self._listed: sa.ColumnElement[bool] = sa.true()

    async def add(self, run: R) -> None:
        try:
            async with self._database.session() as session:
                await self._check_used(session, run)
                session.add(self._row(**_to_columns(run)))
        except IntegrityError as error:
            raise already_exists(self._kind, run.name) from error

    async def find(self, model_uid: str, name: str) -> R | None:
        found = await self._select(self._row.model_uid == model_uid, self._row.name == name, self._listed)
        return found[0] if found else None

    async def of_model(self, model_uid: str) -> list[R]:
        return await self._select(self._row.model_uid == model_uid, self._listed)

    async def belonging_to(self, model_uid: str) -> list[R]:
        return await self._select(self._row.model_uid == model_uid)

    async def active(self) -> list[R]:
        return await self._select(self._row.status.not_in(FINAL))

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
            state["not_finite_series"] = list(run.not_finite_series)
        await self._update(run.uid, **state)

    async def request_stop(self, uid: str) -> None:
        await self._update(uid, stop_requested=True)

    async def remove(self, uid: str) -> None:
        async with self._database.session() as session:
            row = await session.scalar(sa.select(self._row).where(self._row.uid == uid).with_for_update())
            if row is None:
                raise not_found(self._kind, uid)
            if row.status not in FINAL:
                stopping = "is being stopped; try again in a moment"
                state = stopping if row.stop_requested else f"is {row.status}; stop it first"
                raise conflict(
                    f"{self._kind} {row.name!r} {state}",
                    reason="IN_USE",
                    metadata={"kind": self._kind, "name": row.name, "status": row.status},
                )
            if user := await self._user_of(session, uid):
                raise in_use(self._kind, row.name, user)
            title = self._to_run(row).title
            session.add(RemovalRow(uid=uid, kind=self._kind, name=title, job_id=row.job_id))
            await session.delete(row)

    async def models(self) -> list[RunModel]:
        query = sa.select(self._row.model_uid, self._row.model_name, sa.func.min(self._row.orphaned_at))
        async with self._database.session(read_only=True) as session:
            rows = await session.execute(query.group_by(self._row.model_uid, self._row.model_name))
            return [RunModel(uid, name, gone_since) for uid, name, gone_since in rows]

    async def set_orphaned(self, model_uid: str, since: datetime | None) -> None:
        update = sa.update(self._row).where(self._row.model_uid == model_uid).values(orphaned_at=since)
        async with self._database.session() as session:
            await session.execute(update)

    async def _check_used(self, session: AsyncSession, run: R) -> None:
        """400 when what `run` uses was deleted in this moment; it cannot be before the transaction ends."""

    async def _user_of(self, session: AsyncSession, uid: str) -> str:
        """What is active and uses the run, which is locked; empty when nothing does."""
        return ""

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[R]:
        query = sa.select(self._row).where(*conditions).order_by(self._row.created_at, self._row.uid)
        async with self._database.session(read_only=True) as session:
            return [self._to_run(row) for row in await session.scalars(query)]

    async def _update(self, uid: str, **values: Any) -> None:
        # What has ended stays as it is, also when another process of this service settled it in the meantime.
        active = sa.and_(self._row.uid == uid, self._row.status.not_in(FINAL))
        async with self._database.session() as session:
            await session.execute(sa.update(self._row).where(active).values(**values))

    def _to_run(self, row: Any) -> R:
        values = {field.name: getattr(row, field.name) for field in fields(self._make)}  # type: ignore[arg-type]
        values["group"] = InstanceGroup(**values["group"])
        values["status"] = Status(values["status"])
        if "pairs" in values:
            values["pairs"] = [(name, value) for name, value in values["pairs"]]
        return self._make(**values)


class SqlTrainings(SqlRuns[Training]):
    """Trainings; `training_of` says in whose folder a path of weights lies, empty: in no training's."""

    def __init__(self, database: Database, training_of: Callable[[str], str]) -> None:
        super().__init__(database, "training", TrainingRow, Training)
        self._training_of = training_of
        self._listed = TrainingRow.study == ""

    async def _check_used(self, session: AsyncSession, run: Training) -> None:
        field = "wfinit" if run.initial_weights else "wtfolder"
        if (uid := self._training_of(run.weights)) and not await _locked(session, uid):
            raise invalid(field, run.weights, "weights of a training that exists; this one was just deleted")

    async def _user_of(self, session: AsyncSession, uid: str) -> str:
        validation = sa.select(ValidationRow.name).where(
            ValidationRow.training_uid == uid, ValidationRow.status.not_in(FINAL)
        )
        if name := await session.scalar(validation.limit(1)):
            return f"validation {name!r}"
        begun = sa.select(
            TrainingRow.name, TrainingRow.study, TrainingRow.initial_weights, TrainingRow.weights_folder
        ).where(
            TrainingRow.status.not_in(FINAL),
            sa.or_(TrainingRow.initial_weights != "", TrainingRow.weights_folder != ""),
        )
        for name, study, file, folder in await session.execute(begun):
            if self._training_of(file or folder) == uid:
                return f"a trial of tuning {study!r}" if study else f"training {name!r}"
        return ""

    async def by_uid(self, uid: str) -> Training | None:
        found = await self._select(TrainingRow.uid == uid, TrainingRow.is_hidden.is_(False))
        return found[0] if found else None


class SqlValidations(SqlRuns[Validation]):
    """Validations."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "validation", ValidationRow, Validation)

    async def _check_used(self, session: AsyncSession, run: Validation) -> None:
        if not await _locked(session, run.training_uid):
            raise invalid("trainName", run.training_name, "a training that exists; this one was just deleted")


async def _locked(session: AsyncSession, training_uid: str) -> bool:
    """False when there is no such training; it cannot be removed before the transaction ends."""
    query = sa.select(TrainingRow.uid).where(TrainingRow.uid == training_uid).with_for_update(read=True)
    return await session.scalar(query) is not None


def _to_columns(run: Run) -> dict[str, Any]:
    return asdict(run) | {"status": str(run.status)}
