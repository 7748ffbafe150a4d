"""Studies and their trials in the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, conflict, not_found
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from tuning_service.domain.results import MetricRange
from tuning_service.domain.study import STOPPED_WITH_STUDY, Counts, Kind, Status, Study, Trial, TrialStatus
from tuning_service.storage.tables import StudyRow, TrialRow
from tuning_service.usecases.ports import TrialPage

_FINAL = [str(status) for status in Status if status.is_final]
_ENDED = [str(status) for status in TrialStatus if status.is_final]
_COUNTS = ("trials", "finished", "failed", "stopped")


class SqlStudies:
    """`usecases.ports.Studies`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, study: Study) -> None:
        try:
            async with self._database.session() as session:
                session.add(StudyRow(**_study_columns(study), change=0, is_tended=True))
        except IntegrityError as error:
            raise already_exists(_word(study.kind), study.name) from error

    async def find(self, kind: Kind, model_uid: str, name: str) -> Study | None:
        found = await self._select(StudyRow.kind == str(kind), StudyRow.model_uid == model_uid, StudyRow.name == name)
        return found[0] if found else None

    async def get(self, uid: str) -> Study | None:
        found = await self._select(StudyRow.uid == uid)
        return found[0] if found else None

    async def of_kind(self, kind: Kind, *, model_uid: str = "", owner: str | None = None) -> Sequence[Study]:
        conditions = [StudyRow.kind == str(kind)]
        if kind is Kind.MODEL_TUNING:
            conditions.append(StudyRow.model_uid == model_uid)
        if owner is not None:
            conditions.append(StudyRow.owner == owner)
        return await self._select(*conditions)

    async def models(self) -> Sequence[tuple[str, str]]:
        live = sa.and_(StudyRow.kind == str(Kind.MODEL_TUNING), StudyRow.deleted_at.is_(None))
        query = sa.select(StudyRow.model_uid, StudyRow.model_name).where(live).distinct()
        async with self._database.session(read_only=True) as session:
            return [(uid, name) for uid, name in await session.execute(query)]

    async def tended(self) -> Sequence[Study]:
        return await self._select(StudyRow.is_tended.is_(True))

    async def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Study]:
        query = sa.select(StudyRow).where(StudyRow.deleted_at.is_(None), *conditions)
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(query.order_by(StudyRow.created_at, StudyRow.uid))
            return [_study(row) for row in rows]

    async def page(self, uid: str, page: TrialPage) -> Sequence[Trial]:
        query = sa.select(TrialRow).where(TrialRow.study_uid == uid)
        if page.statuses:
            query = query.where(TrialRow.status.in_([str(status) for status in page.statuses]))
        if page.by_loss:
            query = query.where(TrialRow.loss.is_not(None)).order_by(TrialRow.loss, TrialRow.number)
        else:
            query = query.order_by(TrialRow.number.desc() if page.newest_first else TrialRow.number)
        return await self._trials(query.offset(page.start).limit(page.length))

    async def numbered(self, uid: str, numbers: Sequence[int]) -> Sequence[Trial]:
        query = sa.select(TrialRow).where(TrialRow.study_uid == uid, TrialRow.number.in_(numbers))
        return await self._trials(query.order_by(TrialRow.number))

    async def open_trials(self, uid: str) -> Sequence[Trial]:
        query = sa.select(TrialRow).where(TrialRow.study_uid == uid, TrialRow.status.not_in(_ENDED))
        return await self._trials(query.order_by(TrialRow.number))

    async def _trials(self, query: sa.Select[Any]) -> list[Trial]:
        async with self._database.session(read_only=True) as session:
            return [_trial(row) for row in await session.scalars(query)]

    async def changed(self, uid: str, since: int, length: int) -> tuple[Sequence[Trial], int, bool]:
        query = sa.select(TrialRow).where(TrialRow.study_uid == uid)
        slim = query.options(defer(TrialRow.metrics), defer(TrialRow.curve))
        ordered = slim.where(TrialRow.change > since).order_by(TrialRow.change, TrialRow.number).limit(length)
        async with self._database.session(read_only=True) as session:
            newest = await session.scalar(sa.select(StudyRow.change).where(StudyRow.uid == uid)) or 0
            rows = list(await session.scalars(ordered))
            until = newest
            if len(rows) == length:
                # Whole changes only: the next page begins behind one.
                until = rows[-1].change - 1
                rows = [row for row in rows if row.change <= until]
                if not rows:
                    until += 1
                    rows = list(await session.scalars(slim.where(TrialRow.change == until)))
            return [_trial(row, is_slim=True) for row in rows], until, until >= newest

    async def objectives_of(self, uid: str) -> Sequence[tuple[int, Sequence[float]]]:
        finished = TrialRow.status == str(TrialStatus.FINISHED)
        query = sa.select(TrialRow.number, TrialRow.objectives).where(TrialRow.study_uid == uid, finished)
        async with self._database.session(read_only=True) as session:
            return [(number, values) for number, values in await session.execute(query)]

    async def finished_curves(self, uid: str, length: int) -> Sequence[Sequence[tuple[float, float]]]:
        finished = TrialRow.status == str(TrialStatus.FINISHED)
        query = sa.select(TrialRow.curve).where(TrialRow.study_uid == uid, finished)
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(query.order_by(TrialRow.number.desc()).limit(length))
            return [[(step, value) for step, value in curve] for curve in rows]

    async def append(self, uid: str, expected: int, trials: Sequence[Trial], *, is_exhausted: bool) -> bool:
        async with self._database.session() as session:
            row = await _locked(session, uid)
            if row is None or row.trials != expected or row.status in _FINAL or row.stop_requested:
                return False
            row.change += 1
            row.trials += len(trials)
            row.is_exhausted = is_exhausted
            session.add_all(TrialRow(**_trial_columns(trial), change=row.change) for trial in trials)
            return True

    async def save(self, uid: str, trials: Sequence[Trial], losses: Mapping[int, float]) -> None:
        async with self._database.session() as session:
            row = await _locked(session, uid)
            if row is None:
                return
            row.change += 1
            for trial in trials:
                await _save_trial(session, row, trial, losses.get(trial.number))

    async def begin(self, uid: str, now: datetime) -> None:
        fresh = sa.and_(StudyRow.uid == uid, StudyRow.status == str(Status.SUBMITTED))
        await self._update(fresh, status=str(Status.RUNNING), resumed_at=now)

    async def describe(self, uid: str, message: str) -> None:
        await self._update(sa.and_(StudyRow.uid == uid, StudyRow.status.not_in(_FINAL)), status_message=message)

    async def end(self, study: Study) -> bool:
        going_on = sa.and_(
            StudyRow.uid == study.uid,
            StudyRow.status.not_in(_FINAL),
            StudyRow.stop_requested.is_(study.stop_requested),
            StudyRow.trials == study.counts.trials,
        )
        return await self._update(
            going_on, status=str(study.status), status_message=study.status_message, ended_at=study.ended_at
        )

    async def settle(self, uid: str) -> None:
        nothing_open = ~sa.exists().where(TrialRow.study_uid == uid, TrialRow.status.not_in(_ENDED))
        await self._update(sa.and_(StudyRow.uid == uid, StudyRow.status.in_(_FINAL), nothing_open), is_tended=False)

    async def request_stop(self, uid: str, now: datetime, *, at_once: bool) -> bool:
        values: dict[str, Any] = {"stop_requested": True}
        if at_once:
            values |= {"status": str(Status.STOPPED), "status_message": "stopped by force", "ended_at": now}
        return await self._update(sa.and_(StudyRow.uid == uid, StudyRow.status.not_in(_FINAL)), **values)

    async def resume(self, study: Study, make_uid: Callable[[], str]) -> int:
        async with self._database.session() as session:
            row = await _locked(session, study.uid)
            if row is None:
                raise not_found(_word(study.kind), study.name)
            cut_off = TrialRow.stop_reason == STOPPED_WITH_STUDY
            query = sa.select(TrialRow).where(TrialRow.study_uid == study.uid, cut_off)
            open_ones = sa.select(sa.func.count()).where(
                TrialRow.study_uid == study.uid, TrialRow.status.not_in(_ENDED)
            )
            if row.status not in _FINAL:
                raise conflict(f"{_word(study.kind)} {study.name!r} is {row.status}", reason="IN_USE")
            if await session.scalar(open_ones):
                raise conflict(
                    f"trials of {_word(study.kind)} {study.name!r} are being stopped; try again in a moment",
                    reason="IN_USE",
                )
            row.change += 1
            row.is_tended, row.request = True, dict(study.request)
            for name in ("run_seconds", "resumed_at", "ended_at", "status_message", "stop_requested", "is_exhausted"):
                setattr(row, name, getattr(study, name))
            row.status = str(study.status)
            again = list(await session.scalars(query))
            for trial_row in again:
                trial = _trial(trial_row)
                trial.run_again(make_uid())
                for name, value in _trial_columns(trial).items():
                    setattr(trial_row, name, value)
                trial_row.loss, trial_row.change = None, row.change
            row.stopped -= len(again)
            return len(again)

    async def delete(self, uid: str, now: datetime) -> None:
        async with self._database.session() as session:
            row = await _locked(session, uid)
            if row is None:
                raise not_found("study", uid)
            if row.status not in _FINAL:
                doing = "is being stopped; try again in a moment" if row.stop_requested else "runs; stop it first"
                raise conflict(
                    f"{_word(Kind(row.kind))} {row.name!r} {doing}",
                    reason="IN_USE",
                    metadata={"kind": _word(Kind(row.kind)), "name": row.name, "status": row.status},
                )
            row.deleted_at, row.is_tended = now, False

    async def deleted(self) -> Sequence[tuple[str, Kind]]:
        query = sa.select(StudyRow.uid, StudyRow.kind).where(StudyRow.deleted_at.is_not(None))
        async with self._database.session(read_only=True) as session:
            return [(uid, Kind(kind)) for uid, kind in await session.execute(query)]

    async def remove_trials(self, uid: str, numbers: Sequence[int]) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(TrialRow).where(TrialRow.study_uid == uid, TrialRow.number.in_(numbers)))

    async def remove(self, uid: str) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(TrialRow).where(TrialRow.study_uid == uid))
            await session.execute(sa.delete(StudyRow).where(StudyRow.uid == uid, StudyRow.deleted_at.is_not(None)))

    async def known(self, uids: Sequence[str]) -> set[str]:
        async with self._database.session(read_only=True) as session:
            return set(await session.scalars(sa.select(StudyRow.uid).where(StudyRow.uid.in_(uids))))

    async def _update(self, condition: sa.ColumnElement[bool], **values: Any) -> bool:
        async with self._database.session() as session:
            result = await session.execute(sa.update(StudyRow).where(condition).values(**values))
            return bool(result.rowcount)  # type: ignore[attr-defined]


async def _locked(session: AsyncSession, uid: str) -> StudyRow | None:
    query = sa.select(StudyRow).where(StudyRow.uid == uid, StudyRow.deleted_at.is_(None))
    return await session.scalar(query.with_for_update())


async def _save_trial(session: AsyncSession, study: StudyRow, trial: Trial, loss: float | None) -> None:
    values = _trial_columns(trial) | {"loss": loss}
    del values["study_uid"], values["number"]
    if trial.status.is_final:
        # What algorithms see.
        values["change"] = study.change
    goes_on = sa.and_(
        TrialRow.study_uid == trial.study_uid, TrialRow.number == trial.number, TrialRow.status.not_in(_ENDED)
    )
    result = await session.execute(sa.update(TrialRow).where(goes_on).values(_by_column(values)))
    if not result.rowcount or not trial.status.is_final:  # type: ignore[attr-defined]
        return
    counted = trial.status.lower()
    setattr(study, counted, getattr(study, counted) + 1)
    if loss is None or trial.status is not TrialStatus.FINISHED:
        return
    if study.best_loss is None or loss < study.best_loss:
        study.best, study.best_loss = trial.number, loss
        study.improved_at = study.finished + study.failed + study.stopped


def _word(kind: Kind) -> str:
    """What people call it."""
    return "HPO task" if kind is Kind.HYPER_SEARCH else "tuning"


def _study_columns(study: Study) -> dict[str, Any]:
    columns = {name: value for name, value in vars(study).items() if name != "counts"}
    columns["known"] = list(study.known)
    return columns | {"kind": str(study.kind), "status": str(study.status)} | asdict(study.counts)


def _study(row: StudyRow) -> Study:
    names = [name for name in Study.__dataclass_fields__ if name not in ("counts", "kind", "status")]
    return Study(
        **{name: getattr(row, name) for name in names},
        kind=Kind(row.kind),
        status=Status(row.status),
        counts=Counts(**{name: getattr(row, name) for name in _COUNTS}),
    )


def _trial_columns(trial: Trial) -> dict[str, Any]:
    return vars(trial) | {
        "status": str(trial.status),
        "values": dict(trial.values),
        "place": None if trial.place is None else list(trial.place),
        "notes": dict(trial.notes),
        "objectives": list(trial.objectives),
        "metrics": {name: [one.minimum, one.maximum, one.latest] for name, one in trial.metrics.items()},
        "curve": [list(point) for point in trial.curve],
        "earlier_uids": list(trial.earlier_uids),
    }


def _by_column(values: Mapping[str, Any]) -> dict[Any, Any]:
    """`values` is a method of rows: columns by attribute."""
    return {getattr(TrialRow, name): value for name, value in values.items()}


def _trial(row: TrialRow, *, is_slim: bool = False) -> Trial:
    left_out = {"metrics", "curve"} if is_slim else set()
    values = {name: getattr(row, name) for name in Trial.__dataclass_fields__ if name not in left_out}
    values["status"] = TrialStatus(row.status)
    values["place"] = None if row.place is None else tuple(row.place)
    values["objectives"], values["earlier_uids"] = tuple(row.objectives), tuple(row.earlier_uids)
    if not is_slim:
        values["metrics"] = {name: MetricRange(*numbers) for name, numbers in row.metrics.items()}
        values["curve"] = tuple((step, value) for step, value in row.curve)
    return Trial(**values)
