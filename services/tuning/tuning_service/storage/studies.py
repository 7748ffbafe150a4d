"""Studies and their trials in the database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, conflict, not_found
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from tuning_service.domain.study import STOPPED_WITH_STUDY, Counts, Kind, Status, Study, Trial, TrialStatus
from tuning_service.storage.tables import StudyRow, TrialRow
from tuning_service.storage.trial_rows import (
    NOT_LEARNT,
    NOT_SHOWN,
    ONLY_PLACES,
    by_column,
    newest_trials,
    read_trials,
    select_trials,
    shown_size,
    trial_columns,
    within,
)
from tuning_service.usecases.ports import TrialPage

_FINAL = [str(status) for status in Status if status.is_final]
_ENDED = [str(status) for status in TrialStatus if status.is_final]
_COUNTS = ("trials", "finished", "failed", "stopped")
_STUDY = tuple(name for name in Study.__dataclass_fields__ if name != "counts")
_RESUMED = (
    "run_seconds",
    "resumed_at",
    "ended_at",
    "status_message",
    "stop_requested",
    "is_exhausted",
    "most_trials",
)
# Lists show requests, but for those of thousands of experiments or values.
SHOWN_REQUEST_CHARACTERS = 64 * 1024
# Names in one query: databases take so many parameters.
_AT_ONCE = 500
# Of parameters, in one page of what algorithms are told, unless one change has more; of trials in one list.
READ_BYTES, LISTED_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024


class SqlStudies:
    """`usecases.ports.Studies`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, study: Study) -> None:
        try:
            async with self._database.session() as session:
                session.add(StudyRow(**_study_columns(study), change=0, is_tended=True))
        except IntegrityError as error:
            raise already_exists(study.kind.word, study.name) from error

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
        is_small = sa.func.length(sa.cast(StudyRow.request, sa.Text)) <= SHOWN_REQUEST_CHARACTERS
        request = sa.type_coerce(sa.case((is_small, StudyRow.request), else_=None), sa.JSON)
        return await self._select(*conditions, request=request)

    async def models(self) -> Sequence[tuple[str, str]]:
        live = sa.and_(StudyRow.kind == str(Kind.MODEL_TUNING), StudyRow.deleted_at.is_(None))
        query = sa.select(StudyRow.model_uid, StudyRow.model_name).where(live).distinct()
        async with self._database.session(read_only=True) as session:
            return [(uid, name) for uid, name in await session.execute(query)]

    async def tended(self, uid: str = "") -> Sequence[Study]:
        chosen = [StudyRow.uid == uid] if uid else []
        return await self._select(StudyRow.is_tended.is_(True), *chosen, request=sa.literal(None))

    async def _select(
        self, *conditions: sa.ColumnElement[bool], request: sa.ColumnElement[Any] | None = None
    ) -> list[Study]:
        """Studies whole, or with what `request` is instead of their requests and nothing of what earlier ones found."""
        names = [name for name in (*_STUDY, *_COUNTS) if request is None or name not in ("request", "known")]
        columns = [getattr(StudyRow, name) for name in names]
        if request is not None:
            columns.append(request.label("shown_request"))
        query = sa.select(*columns).where(StudyRow.deleted_at.is_(None), *conditions)
        async with self._database.session(read_only=True) as session:
            rows = (await session.execute(query.order_by(StudyRow.created_at, StudyRow.uid))).mappings()
            return [_study(row) for row in rows]

    async def page(self, uid: str, page: TrialPage, *, is_slim: bool = False) -> Sequence[Trial]:
        left_out = NOT_SHOWN if is_slim else frozenset[str]()
        query = select_trials(left_out).where(TrialRow.study_uid == uid)
        if page.statuses:
            query = query.where(TrialRow.status.in_([str(status) for status in page.statuses]))
        if page.by_loss:
            query = query.where(TrialRow.loss.is_not(None)).order_by(TrialRow.loss, TrialRow.number)
        else:
            query = query.order_by(TrialRow.number.desc() if page.newest_first else TrialRow.number)
        query = query.offset(page.start).limit(page.length)
        async with self._database.session(read_only=True) as session:
            if page.most_bytes is not None:
                sizes = await session.scalars(query.with_only_columns(shown_size()))
                query = query.limit(within(sizes, page.most_bytes))
            return await read_trials(session, query, left_out)

    async def first_with_room(self, uid: str, numbers: Sequence[int], most_bytes: int) -> Sequence[int]:
        sizes: dict[int, int] = {}
        for start in range(0, len(numbers), _AT_ONCE):
            some = TrialRow.number.in_(numbers[start : start + _AT_ONCE])
            query = sa.select(TrialRow.number, shown_size()).where(TrialRow.study_uid == uid, some)
            async with self._database.session(read_only=True) as session:
                sizes.update((number, size) for number, size in await session.execute(query))
        return numbers[: within((sizes.get(number, 0) for number in numbers), most_bytes)]

    async def numbered(self, uid: str, numbers: Sequence[int]) -> Sequence[Trial]:
        found: list[Trial] = []
        for start in range(0, len(numbers), _AT_ONCE):
            some = TrialRow.number.in_(numbers[start : start + _AT_ONCE])
            found += await self._trials(select_trials().where(TrialRow.study_uid == uid, some))
        return sorted(found, key=lambda trial: trial.number)

    async def shown(self, uids: Sequence[str], length: int) -> Mapping[str, Sequence[Trial]]:
        found: dict[str, dict[int, Trial]] = {uid: {} for uid in uids}
        of_study, is_best = StudyRow.uid == TrialRow.study_uid, TrialRow.number == StudyRow.best
        for start in range(0, len(uids), _AT_ONCE):
            some = StudyRow.uid.in_(uids[start : start + _AT_ONCE])
            queries = [select_trials(NOT_SHOWN).join(StudyRow, of_study).where(some, is_best)]
            if length:
                newest = newest_trials(some, length)
                this = sa.and_(newest.c.study_uid == TrialRow.study_uid, newest.c.number == TrialRow.number)
                has_room = newest.c.together <= LISTED_BYTES
                queries.append(select_trials(NOT_SHOWN).join(newest, this).where(has_room))
            for query in queries:
                for trial in await self._trials(query, NOT_SHOWN):
                    found[trial.study_uid][trial.number] = trial
        return {uid: sorted(trials.values(), key=lambda trial: trial.number) for uid, trials in found.items()}

    async def open_trials(self, uid: str) -> Sequence[Trial]:
        query = select_trials().where(TrialRow.study_uid == uid, TrialRow.status.not_in(_ENDED))
        return await self._trials(query.order_by(TrialRow.number))

    async def _trials(self, query: sa.Select[Any], left_out: frozenset[str] = frozenset()) -> list[Trial]:
        async with self._database.session(read_only=True) as session:
            return await read_trials(session, query, left_out)

    async def changed(
        self, uid: str, since: int, length: int, *, with_values: bool = True
    ) -> tuple[Sequence[Trial], int, bool]:
        of_study = TrialRow.study_uid == uid
        ordered = (TrialRow.change, TrialRow.number)
        left_out = NOT_LEARNT if with_values else ONLY_PLACES
        size = sa.func.length(sa.cast(TrialRow.values, sa.Text)) if with_values else sa.literal(0)
        later = sa.select(TrialRow.change, size).where(of_study, TrialRow.change > since).order_by(*ordered)
        async with self._database.session(read_only=True) as session:
            newest = await session.scalar(sa.select(StudyRow.change).where(StudyRow.uid == uid)) or 0
            found = (await session.execute(later.limit(length))).all()
            changes = [change for change, _ in found[: within((size for _, size in found), READ_BYTES)]]
            until = newest
            if len(changes) == length or len(changes) < len(found):
                # Whole changes only: the next page begins behind one.
                until = changes[-1] - 1 if changes[0] < changes[-1] else changes[-1]
            these = sa.and_(of_study, TrialRow.change > since, TrialRow.change <= until)
            trials = await read_trials(session, select_trials(left_out).where(these).order_by(*ordered), left_out)
            return trials, until, until >= newest

    async def objectives_of(self, uid: str) -> Sequence[tuple[int, Sequence[float]]]:
        finished = TrialRow.status == str(TrialStatus.FINISHED)
        text = sa.cast(TrialRow.objectives, sa.Text)
        query = sa.select(TrialRow.number, text).where(TrialRow.study_uid == uid, finished)
        async with self._database.session(read_only=True) as session:
            rows = (await session.execute(query)).all()
        return await asyncio.to_thread(_parsed, rows)

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
            session.add_all(TrialRow(**trial_columns(trial), change=row.change) for trial in trials)
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
                raise not_found(study.kind.word, study.name)
            query = select_trials().where(_cut_off(study.uid))
            open_ones = sa.select(sa.func.count()).where(
                TrialRow.study_uid == study.uid, TrialRow.status.not_in(_ENDED)
            )
            if row.status not in _FINAL:
                raise conflict(f"{study.kind.word} {study.name!r} is {row.status}", reason="IN_USE")
            if await session.scalar(open_ones):
                raise conflict(
                    f"trials of {study.kind.word} {study.name!r} are being stopped; try again in a moment",
                    reason="IN_USE",
                )
            row.change += 1
            row.is_tended, row.request = True, dict(study.request)
            for name in _RESUMED:
                setattr(row, name, getattr(study, name))
            row.status = str(study.status)
            again = await read_trials(session, query)
            for trial in again:
                trial.run_again(make_uid())
                this = sa.and_(TrialRow.study_uid == study.uid, TrialRow.number == trial.number)
                values = by_column(trial_columns(trial) | {"loss": None, "change": row.change})
                await session.execute(sa.update(TrialRow).where(this).values(values))
            row.stopped -= len(again)
            return len(again)

    async def cut_off(self, uid: str) -> int:
        query = sa.select(sa.func.count()).select_from(TrialRow).where(_cut_off(uid))
        async with self._database.session(read_only=True) as session:
            return await session.scalar(query) or 0

    async def delete(self, uid: str, now: datetime) -> None:
        async with self._database.session() as session:
            row = await _locked(session, uid)
            if row is None:
                raise not_found("study", uid)
            _delete(row, now)

    async def delete_all(self, kind: Kind, owner: str, now: datetime) -> None:
        these = (StudyRow.kind == str(kind), StudyRow.owner == owner, StudyRow.deleted_at.is_(None))
        slim = load_only(StudyRow.kind, StudyRow.name, StudyRow.status, StudyRow.stop_requested)
        query = sa.select(StudyRow).where(*these).options(slim).order_by(StudyRow.created_at, StudyRow.uid)
        async with self._database.session() as session:
            for row in await session.scalars(query.with_for_update()):
                _delete(row, now)

    async def deleted(self) -> Sequence[tuple[str, Kind]]:
        query = sa.select(StudyRow.uid, StudyRow.kind).where(StudyRow.deleted_at.is_not(None))
        async with self._database.session(read_only=True) as session:
            return [(uid, Kind(kind)) for uid, kind in await session.execute(query)]

    async def runs(self, uid: str, length: int) -> Mapping[int, Sequence[str]]:
        query = sa.select(TrialRow.number, TrialRow.uid, TrialRow.earlier_uids).where(TrialRow.study_uid == uid)
        async with self._database.session(read_only=True) as session:
            rows = await session.execute(query.order_by(TrialRow.number).limit(length))
            return {number: (*earlier, newest) for number, newest, earlier in rows}

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


def _parsed(rows: Sequence[Any]) -> list[tuple[int, Sequence[float]]]:
    """Numbers and lists that were texts, all of them parsed as one."""
    found = json.loads(f"[{','.join(text for _, text in rows)}]")
    return [(number, values) for (number, _), values in zip(rows, found, strict=True)]


def _delete(row: StudyRow, now: datetime) -> None:
    if row.status not in _FINAL:
        doing = "is being stopped; try again in a moment" if row.stop_requested else "runs; stop it first"
        raise conflict(
            f"{Kind(row.kind).word} {row.name!r} {doing}",
            reason="IN_USE",
            metadata={"kind": Kind(row.kind).word, "name": row.name, "status": row.status},
        )
    row.deleted_at, row.is_tended = now, False


def _cut_off(uid: str) -> sa.ColumnElement[bool]:
    """Trials of a study that its stop ended. One that finished or failed before it could be stopped has its result."""
    is_stopped = TrialRow.status == str(TrialStatus.STOPPED)
    return sa.and_(TrialRow.study_uid == uid, is_stopped, TrialRow.stop_reason == STOPPED_WITH_STUDY)


async def _locked(session: AsyncSession, uid: str) -> StudyRow | None:
    query = sa.select(StudyRow).where(StudyRow.uid == uid, StudyRow.deleted_at.is_(None))
    return await session.scalar(query.with_for_update())


async def _save_trial(session: AsyncSession, study: StudyRow, trial: Trial, loss: float | None) -> None:
    values = trial_columns(trial) | {"loss": loss}
    del values["study_uid"], values["number"]
    if trial.status.is_final:
        # What algorithms see.
        values["change"] = study.change
    goes_on = sa.and_(
        TrialRow.study_uid == trial.study_uid, TrialRow.number == trial.number, TrialRow.status.not_in(_ENDED)
    )
    result = await session.execute(sa.update(TrialRow).where(goes_on).values(by_column(values)))
    if not result.rowcount or not trial.status.is_final:  # type: ignore[attr-defined]
        return
    counted = trial.status.lower()
    setattr(study, counted, getattr(study, counted) + 1)
    if loss is None or trial.status is not TrialStatus.FINISHED:
        return
    if study.best_loss is None or loss < study.best_loss:
        study.best, study.best_loss = trial.number, loss
        study.improved_at = study.finished + study.failed + study.stopped
    elif loss == study.best_loss and trial.number < study.best:
        # Of equally good ones the first by number, as in pages: which of two that run at once ends first is chance.
        study.best = trial.number


def _study_columns(study: Study) -> dict[str, Any]:
    columns = {name: value for name, value in vars(study).items() if name != "counts"}
    columns["known"], columns["warnings"] = list(study.known), list(study.warnings)
    return columns | {"kind": str(study.kind), "status": str(study.status)} | asdict(study.counts)


def _study(row: sa.RowMapping) -> Study:
    values = {name: row[name] for name in _STUDY if name in row}
    values["request"] = row["shown_request"] or {} if "shown_request" in row else row["request"]
    values["kind"], values["status"] = Kind(row["kind"]), Status(row["status"])
    return Study(**values, counts=Counts(**{name: row[name] for name in _COUNTS}))
