"""The catalog over SQLAlchemy: one method, one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, conflict, in_use, invalid, not_found
from servicekit.times import utc_now
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from models_service.domain.model import Model
from models_service.domain.template import Template
from models_service.storage.tables import MODELS, REMOVALS, TEMPLATES

REMOVALS_AT_ONCE = 100


class SqlCatalog:
    """Implements `usecases.ports.Catalog`. Folders are kept relative to `home`, so a home may be moved."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database = database
        self._home = home

    async def reserve(self, directory: Path, until: datetime) -> None:
        async with self._database.session() as session:
            await session.execute(REMOVALS.insert().values(directory=self._text(directory), due_at=until))

    async def release(self, directory: Path) -> None:
        async with self._database.session() as session:
            await session.execute(
                REMOVALS.update().where(REMOVALS.c.directory == self._text(directory)).values(due_at=utc_now())
            )

    async def due_removals(self, now: datetime) -> Sequence[Path]:
        statement = sa.select(REMOVALS.c.directory).where(REMOVALS.c.due_at <= now).limit(REMOVALS_AT_ONCE)
        async with self._database.session(read_only=True) as session:
            return [self._home / text for text in (await session.execute(statement)).scalars()]

    async def forget_removal(self, directory: Path) -> None:
        async with self._database.session() as session:
            await session.execute(REMOVALS.delete().where(REMOVALS.c.directory == self._text(directory)))

    async def list_templates(self) -> Sequence[Template]:
        async with self._database.session(read_only=True) as session:
            rows = await session.execute(sa.select(TEMPLATES).order_by(TEMPLATES.c.name))
            return [self._template(row) for row in rows.mappings()]

    async def find_template(self, name: str) -> Template | None:
        if "\0" in name:  # PostgreSQL cannot even be asked
            return None
        async with self._database.session(read_only=True) as session:
            return await self._find_template(session, name)

    async def add_template(self, template: Template) -> None:
        try:
            async with self._database.session() as session:
                await session.execute(TEMPLATES.insert().values(self._row(template)))
                if not template.built_in:
                    await self._take_reservation(session, template.directory)
        except IntegrityError as error:
            raise already_exists("model template", template.name) from error

    async def change_template(self, name: str, change: Callable[[Template], Template]) -> Template:
        async with self._database.session() as session:
            current = await self._find_template(session, name, lock=True)
            if current is None:
                raise not_found("model template", name)
            changed = replace(change(current), uid=current.uid)
            await session.execute(TEMPLATES.update().where(TEMPLATES.c.uid == current.uid).values(self._row(changed)))
            if changed.directory != current.directory and not current.built_in:
                await self._take_reservation(session, changed.directory)
                await self._order_removal(session, current.directory)
            return changed

    async def remove_template(self, name: str) -> None:
        try:
            async with self._database.session() as session:
                current = await self._find_template(session, name, lock=True)
                if current is None:
                    raise not_found("model template", name)
                used_by = sa.select(MODELS.c.name).where(MODELS.c.template_uid == current.uid).limit(1)
                model = (await session.execute(used_by)).scalar_one_or_none()
                if model is not None:
                    raise in_use("model template", name, f"model {model!r}")
                await session.execute(TEMPLATES.delete().where(TEMPLATES.c.uid == current.uid))
                await self._order_removal(session, current.directory)
        except IntegrityError as error:  # a model was made from it in this moment
            raise in_use("model template", name, "a model") from error

    async def list_models(self) -> Sequence[Model]:
        async with self._database.session(read_only=True) as session:
            rows = await session.execute(sa.select(MODELS).order_by(MODELS.c.name))
            return [self._model(row) for row in rows.mappings()]

    async def find_model(self, name: str) -> Model | None:
        if "\0" in name:
            return None
        async with self._database.session(read_only=True) as session:
            return await self._find_model(session, MODELS.c.name == name)

    async def find_model_by_uid(self, uid: str) -> Model | None:
        if "\0" in uid:
            return None
        async with self._database.session(read_only=True) as session:
            return await self._find_model(session, MODELS.c.uid == uid)

    async def add_model(self, model: Model) -> None:
        try:
            async with self._database.session() as session:
                template = sa.select(TEMPLATES.c.uid).where(TEMPLATES.c.uid == model.template_uid).with_for_update()
                if (await session.execute(template)).scalar_one_or_none() is None:
                    raise invalid("templatename", model.template_name, "a model template; this one was just deleted")
                await session.execute(MODELS.insert().values(self._row(model)))
                await self._take_reservation(session, model.directory)
        except IntegrityError as error:
            raise already_exists("model", model.name) from error

    async def change_model(self, name: str, change: Callable[[Model], Model]) -> Model:
        async with self._database.session() as session:
            current = await self._find_model(session, MODELS.c.name == name, lock=True)
            if current is None:
                raise not_found("model", name)
            changed = replace(change(current), uid=current.uid, directory=current.directory)
            await session.execute(MODELS.update().where(MODELS.c.uid == current.uid).values(self._row(changed)))
            return changed

    async def remove_model(self, uid: str) -> None:
        async with self._database.session() as session:
            model = await self._find_model(session, MODELS.c.uid == uid, lock=True)
            if model is not None:
                await session.execute(MODELS.delete().where(MODELS.c.uid == uid))
                await self._order_removal(session, model.directory)

    async def _take_reservation(self, session: AsyncSession, directory: Path) -> None:
        # A due order may be under execution already, so only one that is not due can be taken back.
        result = await session.execute(
            REMOVALS.delete()
            .where(REMOVALS.c.directory == self._text(directory), REMOVALS.c.due_at > utc_now())
            .returning(REMOVALS.c.directory)
        )
        if result.scalar_one_or_none() is None:
            raise conflict("copying the files took too long; try again", reason="RESERVATION_EXPIRED")

    async def _order_removal(self, session: AsyncSession, directory: Path) -> None:
        await session.execute(REMOVALS.insert().values(directory=self._text(directory), due_at=utc_now()))

    async def _find_template(self, session: AsyncSession, name: str, *, lock: bool = False) -> Template | None:
        statement = sa.select(TEMPLATES).where(TEMPLATES.c.name == name)
        row = (await session.execute(statement.with_for_update() if lock else statement)).mappings().one_or_none()
        return None if row is None else self._template(row)

    async def _find_model(
        self, session: AsyncSession, condition: sa.ColumnElement[bool], *, lock: bool = False
    ) -> Model | None:
        statement = sa.select(MODELS).where(condition)
        row = (await session.execute(statement.with_for_update() if lock else statement)).mappings().one_or_none()
        return None if row is None else self._model(row)

    def _template(self, row: sa.RowMapping) -> Template:
        return Template(**{**dict(row), "path": Path(row["path"]), "directory": self._home / row["directory"]})

    def _model(self, row: sa.RowMapping) -> Model:
        return Model(**{**dict(row), "directory": self._home / row["directory"]})

    def _row(self, thing: Template | Model) -> dict[str, Any]:
        values = {field.name: getattr(thing, field.name) for field in fields(thing)}
        if isinstance(thing, Template):
            values["path"] = str(thing.path)
        return {**values, "directory": self._text(thing.directory)}

    def _text(self, directory: Path) -> str:
        return str(directory.relative_to(self._home) if directory.is_relative_to(self._home) else directory)
