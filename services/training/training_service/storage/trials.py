"""Trainings of studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.tombstones import Tombstones
from servicekit.trials import deleted_trial
from sqlalchemy.ext.asyncio import AsyncSession

from training_service.domain.runs import Training
from training_service.storage.runs import FINAL, SqlTrainings
from training_service.storage.tables import DeletedTrialRow, RemovalRow, TrainingRow

# Both databases limit the parameters of one statement.
IDS_PER_STATEMENT = 500


class SqlTrials(SqlTrainings):
    """The trials in the table of trainings, and which were deleted."""

    def __init__(self, database: Database, training_of: Callable[[str], str]) -> None:
        super().__init__(database, training_of)
        noted = DeletedTrialRow.__table__.c
        self._tombstones = Tombstones(database, noted.uid, noted.deleted_at)

    async def _check_used(self, session: AsyncSession, run: Training) -> None:
        await super()._check_used(session, run)
        if not await self._tombstones.claim(session, run.uid, run.created_at):
            raise deleted_trial("trial_id", run.uid)

    async def known(self, uids: Sequence[str]) -> Mapping[str, Training]:
        found: dict[str, Training] = {}
        for some in _pieces(uids):
            trials = TrainingRow.uid.in_(some), TrainingRow.study != "", TrainingRow.is_hidden.is_(False)
            found |= {trial.uid: trial for trial in await self._select(*trials)}
        return found

    async def was_deleted(self, uid: str) -> bool:
        hidden = sa.select(TrainingRow.uid).where(TrainingRow.uid == uid, TrainingRow.is_hidden.is_(True))
        async with self._database.session(read_only=True) as session:
            found = await session.execute(sa.union_all(hidden, self._tombstones.noted(uid)))
            return found.first() is not None

    async def active_of_model(self, model_uid: str) -> list[Training]:
        return await self._select(
            TrainingRow.model_uid == model_uid, TrainingRow.study != "", TrainingRow.status.not_in(FINAL)
        )

    async def delete(self, uids: Sequence[str], now: datetime) -> None:
        # In one order, so that two deletions wait for each other and not both at once.
        for some in _pieces(sorted(uids)):
            async with self._database.session() as session:
                await self._tombstones.note(session, some, now)
                mine = sa.and_(TrainingRow.uid.in_(some), TrainingRow.study != "")
                change = sa.update(TrainingRow).where(mine).values(is_hidden=True, stop_requested=True)
                await session.execute(change)

    async def deleted(self) -> Sequence[str]:
        query = sa.select(TrainingRow.uid).where(TrainingRow.is_hidden.is_(True), TrainingRow.status.in_(FINAL))
        async with self._database.session(read_only=True) as session:
            return list(await session.scalars(query.order_by(TrainingRow.created_at)))

    async def forget_deleted(self, before: datetime) -> None:
        # What is still being removed keeps its note.
        hidden = sa.select(TrainingRow.uid).where(TrainingRow.is_hidden.is_(True))
        async with self._database.session() as session:
            await self._tombstones.forget(session, before, hidden, sa.select(RemovalRow.uid))


def _pieces(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(uids), IDS_PER_STATEMENT):
        yield uids[start : start + IDS_PER_STATEMENT]
