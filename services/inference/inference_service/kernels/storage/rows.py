"""Rows of models with a kernel: the fields of the domain object are the columns of the table."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists
from sqlalchemy.exc import IntegrityError

from inference_service.kernels.domain.models import KIND, KernelModel, KernelState
from inference_service.kernels.domain.profiles import KernelProfile, as_pairs
from inference_service.storage.tables import KernelModelRow

_CHANGEABLE = [str(state) for state in KernelState if state.may_change]
_FIXED = ("uid", "name", "owner", "created_at")
_MOVED = ("state", "status_message")


class SqlKernelModels:
    """`ports.KernelModels`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, model: KernelModel) -> None:
        try:
            async with self._database.session() as session:
                session.add(KernelModelRow(**_columns(model)))
        except IntegrityError as error:
            raise already_exists(KIND, model.name) from error

    async def find(self, name: str) -> KernelModel | None:
        found = await self._select(KernelModelRow.name == name)
        return found[0] if found else None

    async def all(self) -> list[KernelModel]:
        return await self._select()

    async def move(self, model: KernelModel, before: KernelState) -> bool:
        values = {name: value for name, value in _columns(model).items() if name in _MOVED}
        return await self._update(model.uid, KernelModelRow.state == str(before), values)

    async def change(self, model: KernelModel, seen: datetime) -> bool:
        values = {name: value for name, value in _columns(model).items() if name not in (*_FIXED, *_MOVED)}
        condition = sa.and_(KernelModelRow.state.in_(_CHANGEABLE), KernelModelRow.updated_at == seen)
        return await self._update(model.uid, condition, values)

    async def delete(self, uid: str) -> bool:
        condition = KernelModelRow.state.in_(_CHANGEABLE)
        async with self._database.session() as session:
            gone = await session.execute(sa.delete(KernelModelRow).where(KernelModelRow.uid == uid, condition))
            return isinstance(gone, sa.CursorResult) and gone.rowcount > 0

    async def _update(self, uid: str, condition: sa.ColumnElement[bool], values: dict[str, Any]) -> bool:
        async with self._database.session() as session:
            statement = sa.update(KernelModelRow).where(KernelModelRow.uid == uid, condition).values(**values)
            done = await session.execute(statement)
            return isinstance(done, sa.CursorResult) and done.rowcount > 0

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[KernelModel]:
        query = sa.select(KernelModelRow).where(*conditions).order_by(KernelModelRow.created_at, KernelModelRow.uid)
        async with self._database.session(read_only=True) as session:
            return [_model(row) for row in await session.scalars(query)]


def _columns(model: KernelModel) -> dict[str, Any]:
    values = {field.name: getattr(model, field.name) for field in fields(KernelModel)}
    return values | {"state": str(model.state), "profile": model.profile.as_json()}


def _model(row: KernelModelRow) -> KernelModel:
    values = {field.name: getattr(row, field.name) for field in fields(KernelModel)}
    values["attributes"], values["environments"] = as_pairs(row.attributes), as_pairs(row.environments)
    values["profile"], values["state"] = KernelProfile.from_json(row.profile), KernelState(row.state)
    return KernelModel(**values)
