"""Repository of predictions: the fields of the domain objects are the columns of the table."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists
from servicekit.jobs import InstanceGroup
from sqlalchemy.exc import IntegrityError

from inference_service.domain.predictions import Prediction, ResultType, Sample, Status
from inference_service.storage.tables import PredictionRow

_FINAL = [str(status) for status in Status if status.is_final]


class SqlPredictions:
    """`ports.Predictions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, prediction: Prediction) -> None:
        try:
            async with self._database.session() as session:
                session.add(PredictionRow(**asdict(prediction) | _texts(prediction)))
        except IntegrityError as error:
            raise already_exists("prediction", prediction.name) from error

    async def find(self, name: str) -> Prediction | None:
        found = await self._select(PredictionRow.name == name)
        return found[0] if found else None

    async def all(self, model_name: str | None = None) -> list[Prediction]:
        return await self._select(*([PredictionRow.model_name == model_name] if model_name else []))

    async def active(self) -> list[Prediction]:
        return await self._select(PredictionRow.status.not_in(_FINAL))

    async def count_active(self, owner: str) -> int:
        query = sa.select(sa.func.count()).where(PredictionRow.owner == owner, PredictionRow.status.not_in(_FINAL))
        async with self._database.session(read_only=True) as session:
            return int(await session.scalar(query) or 0)

    async def save_state(self, prediction: Prediction) -> None:
        await self._update(
            prediction.uid,
            status_message=prediction.status_message,
            done=prediction.done,
            sample_count=prediction.sample_count,
            result_file=prediction.result_file,
            are_images=prediction.are_images,
            driver_id=prediction.driver_id,
            accepted=prediction.accepted,
            best=prediction.best,
            **_texts(prediction),
        )

    async def request_stop(self, uid: str) -> None:
        await self._update(uid, stop_requested=True)

    async def delete(self, uid: str) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(PredictionRow).where(PredictionRow.uid == uid))

    async def uids(self) -> set[str]:
        async with self._database.session(read_only=True) as session:
            return set(await session.scalars(sa.select(PredictionRow.uid)))

    async def _update(self, uid: str, **values: Any) -> None:
        async with self._database.session() as session:
            await session.execute(sa.update(PredictionRow).where(PredictionRow.uid == uid).values(**values))

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Prediction]:
        query = sa.select(PredictionRow).where(*conditions).order_by(PredictionRow.created_at, PredictionRow.uid)
        async with self._database.session(read_only=True) as session:
            rows = [_values(Prediction, row) for row in await session.scalars(query)]
        return [_prediction(values) for values in rows]


def _texts(prediction: Prediction) -> dict[str, str]:
    return {"status": str(prediction.status), "result_type": str(prediction.result_type)}


def _prediction(values: dict[str, Any]) -> Prediction:
    values["group"] = InstanceGroup(**values["group"])
    values["status"] = Status(values["status"])
    values["result_type"] = ResultType(values["result_type"])
    values["samples"] = [Sample(**sample) for sample in values["samples"]]
    return Prediction(**values)


def _values(kind: Any, row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(kind)}
