"""Repository of inference models and their versions, and the memory in front of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, not_found
from sqlalchemy.exc import IntegrityError

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.storage.tables import InferenceModelRow, ModelVersionRow


class SqlInferenceModels:
    """`ports.InferenceModels`. This service is the only writer, so that what was read holds until it writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, InferenceModel] | None = None
        self._writes = 0

    async def add(self, model: InferenceModel) -> None:
        values = {key: value for key, value in asdict(model).items() if key != "versions"}
        try:
            async with self._database.session() as session:
                session.add(InferenceModelRow(**values))
                session.add_all(_version_row(model.uid, version) for version in model.versions)
        except IntegrityError as error:
            raise already_exists("inference model", model.name) from error
        finally:
            self._forget()

    async def find(self, name: str) -> InferenceModel | None:
        found = (await self._all()).get(name)
        return found.copy() if found else None

    async def all(self) -> list[InferenceModel]:
        return [model.copy() for model in (await self._all()).values()]

    async def note_listed(self, model: InferenceModel) -> None:
        await self._update(model.uid, catalog_uid=model.catalog_uid)

    async def note_used(self, uid: str, at: datetime) -> None:
        await self._update(uid, last_used_at=at)

    async def add_version(self, uid: str, version: ModelVersion) -> ModelVersion:
        model = InferenceModelRow
        counted = sa.update(model).where(model.uid == uid).values(last_version=model.last_version + 1)
        try:
            async with self._database.session() as session:
                # Counted and inserted in one transaction: whoever else adds one waits for this row.
                if not (await session.execute(counted.returning(model.uid))).first():
                    raise not_found("inference model", uid)
                number = await session.scalar(sa.select(model.last_version).where(model.uid == uid))
                added = replace(version, number=int(number or 0))
                session.add(_version_row(uid, added))
        finally:
            self._forget()
        return added

    async def save_version(self, uid: str, version: ModelVersion) -> None:
        await self._update_version(uid, version.number, state=str(version.state), status_message=version.status_message)

    async def note_waiting(self, uid: str, number: int, message: str) -> None:
        row = ModelVersionRow
        where = (row.model_uid == uid, row.number == number, row.state == str(ModelState.LOADING))
        try:
            async with self._database.session() as session:
                await session.execute(sa.update(row).where(*where).values(status_message=message))
        finally:
            self._forget()

    async def save_traffic(self, model: InferenceModel) -> None:
        row = ModelVersionRow
        try:
            async with self._database.session() as session:
                for version in model.versions:
                    where = (row.model_uid == model.uid, row.number == version.number)
                    await session.execute(sa.update(row).where(*where).values(percentage=version.percentage))
        finally:
            self._forget()

    async def delete_version(self, uid: str, number: int) -> None:
        row = ModelVersionRow
        try:
            async with self._database.session() as session:
                await session.execute(sa.delete(row).where(row.model_uid == uid, row.number == number))
        finally:
            self._forget()

    async def delete(self, uid: str) -> None:
        try:
            async with self._database.session() as session:
                await session.execute(sa.delete(ModelVersionRow).where(ModelVersionRow.model_uid == uid))
                await session.execute(sa.delete(InferenceModelRow).where(InferenceModelRow.uid == uid))
        finally:
            self._forget()

    async def _update(self, uid: str, **values: Any) -> None:
        try:
            async with self._database.session() as session:
                await session.execute(sa.update(InferenceModelRow).where(InferenceModelRow.uid == uid).values(**values))
        finally:
            self._forget()

    async def _update_version(self, uid: str, number: int, **values: Any) -> None:
        row = ModelVersionRow
        try:
            async with self._database.session() as session:
                await session.execute(sa.update(row).where(row.model_uid == uid, row.number == number).values(**values))
        finally:
            self._forget()

    def _forget(self) -> None:
        self._writes += 1
        self._known = None

    async def _all(self) -> dict[str, InferenceModel]:
        if self._known is not None:
            return self._known
        writes = self._writes
        known = {model.name: model for model in await self._read()}
        if writes == self._writes:
            # Else somebody wrote while this was read: the next one reads again.
            self._known = known
        return known

    async def _read(self) -> list[InferenceModel]:
        models = sa.select(InferenceModelRow).order_by(InferenceModelRow.created_at, InferenceModelRow.uid)
        versions: dict[str, list[ModelVersion]] = defaultdict(list)
        async with self._database.session(read_only=True) as session:
            found = list(await session.scalars(models))
            for row in await session.scalars(sa.select(ModelVersionRow).order_by(ModelVersionRow.number)):
                values = _values(ModelVersion, row)
                versions[row.model_uid].append(ModelVersion(**values | {"state": ModelState(values["state"])}))
        # One without versions was deleted between the two questions.
        return [
            InferenceModel(**_values(InferenceModel, row), versions=versions[row.uid])
            for row in found
            if versions[row.uid]
        ]


def _version_row(uid: str, version: ModelVersion) -> ModelVersionRow:
    return ModelVersionRow(model_uid=uid, **asdict(version) | {"state": str(version.state)})


def _values(kind: Any, row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(kind) if field.name != "versions"}
