"""The table of exec tasks and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database, UtcDateTime
from servicekit.texts import storable
from servicekit.times import utc_now
from servicekit.tombstones import Tombstones
from servicekit.trials import deleted_trial

from scheduling_service.domain.application import why
from scheduling_service.domain.exec_task import ExecTask, ExecView
from scheduling_service.domain.job import Spec, State
from scheduling_service.storage.tables import GROUPS, JOBS, METADATA

EXECS = sa.Table(
    "execs",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("group_id", sa.String(64), nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    # The job to submit, frozen.
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    # Deleted by its owner; the loop stops it, removes its files and then the row.
    sa.Column("is_hidden", sa.Boolean, nullable=False),
    # Lists leave them out.
    sa.Column("is_trial", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_execs_lists", "is_trial", "created_at", "id"),
    sa.Index("ix_execs_lists_of_owner", "owner", "is_trial", "created_at", "id"),
    sa.Index(
        "ix_execs_hidden",
        "created_at",
        sqlite_where=sa.text("is_hidden IS 1"),
        postgresql_where=sa.text("is_hidden IS true"),
    ),
)

# Ids of trials that were deleted, kept for a while so that a start that comes late starts nothing.
DELETED_TRIALS = sa.Table(
    "deleted_trials",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("deleted_at", UtcDateTime, nullable=False),
    sa.Index("ix_deleted_trials_deleted_at", "deleted_at"),
)

# Both databases limit the parameters of one statement.
IDS_PER_STATEMENT = 1000
_OF_THE_JOB = ("state", "reason", "ended_at", "application_id", "driver_id", "warning", "log_tail")
_OF_THE_TASK = ("id", "owner", "group_id", "arguments", "created_at")
_VIEW = sa.select(
    *(EXECS.c[name] for name in _OF_THE_TASK),
    GROUPS.c.name.label("group_name"),
    *(GROUPS.c[name] for name in ("master_url", "execution_user", "runs_next", "is_started")),
    *(JOBS.c[name] for name in (*_OF_THE_JOB, "waits_because")),
).select_from(EXECS.outerjoin(GROUPS, GROUPS.c.id == EXECS.c.group_id).outerjoin(JOBS, JOBS.c.id == EXECS.c.id))


class SqlExecs:
    """`usecases.exec_ports.Execs`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tombstones = Tombstones(database, DELETED_TRIALS.c.id, DELETED_TRIALS.c.deleted_at)

    async def add(self, task: ExecTask) -> None:
        row = {
            "id": task.id,
            "owner": task.owner,
            "group_id": task.group_id,
            "arguments": storable(task.arguments),
            "spec": asdict(task.spec),
            "created_at": task.created_at,
            "is_hidden": False,
            "is_trial": task.is_trial,
        }
        async with self._database.session() as session:
            if task.is_trial and not await self._tombstones.claim(session, task.id, task.created_at):
                raise deleted_trial("task_id", task.id)
            await session.execute(sa.insert(EXECS).values(**row))

    async def find(self, task_id: str) -> ExecView | None:
        query = _VIEW.where(EXECS.c.id == task_id, EXECS.c.is_hidden.is_(False))
        async with self._database.session(read_only=True) as session:
            row = (await session.execute(query)).mappings().one_or_none()
        return None if row is None else _view(row)

    async def visible(self, owner: str | None, after: ExecView | None, length: int) -> Sequence[ExecView]:
        query = _VIEW.where(EXECS.c.is_trial.is_(False), EXECS.c.is_hidden.is_(False))
        if owner is not None:
            query = query.where(EXECS.c.owner == owner)
        if after is not None:
            earlier = EXECS.c.created_at < after.created_at
            same = sa.and_(EXECS.c.created_at == after.created_at, EXECS.c.id < after.id)
            query = query.where(sa.or_(earlier, same))
        query = query.order_by(EXECS.c.created_at.desc(), EXECS.c.id.desc()).limit(length)
        async with self._database.session(read_only=True) as session:
            return [_view(row) for row in (await session.execute(query)).mappings()]

    async def hide(self, task_id: str) -> None:
        change = sa.update(EXECS).where(EXECS.c.id == task_id).values(is_hidden=True).returning(EXECS.c.is_trial)
        async with self._database.session() as session:
            if (await session.execute(change)).scalar_one_or_none():
                await self._tombstones.note(session, [task_id], utc_now())

    async def trials(self, task_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        async with self._database.session(read_only=True) as session:
            for ids in _pieces(task_ids):
                mine = sa.and_(EXECS.c.id.in_(ids), EXECS.c.is_trial, EXECS.c.is_hidden.is_(False))
                found.update((await session.execute(sa.select(EXECS.c.id).where(mine))).scalars())
        return found

    async def was_deleted(self, task_id: str) -> bool:
        hidden = sa.select(EXECS.c.id).where(EXECS.c.id == task_id, EXECS.c.is_hidden.is_(True))
        async with self._database.session(read_only=True) as session:
            found = await session.execute(sa.union_all(hidden, self._tombstones.noted(task_id)))
            return found.first() is not None

    async def delete_trials(self, task_ids: Sequence[str], now: datetime) -> None:
        # In one order, so that two deletions wait for each other and not both at once.
        for ids in _pieces(sorted(task_ids)):
            async with self._database.session() as session:
                await self._tombstones.note(session, ids, now)
                mine = sa.and_(EXECS.c.id.in_(ids), EXECS.c.is_trial)
                await session.execute(sa.update(EXECS).where(mine).values(is_hidden=True))

    async def forget_deleted(self, before: datetime) -> None:
        # What is still being removed keeps its note.
        hidden = sa.select(EXECS.c.id).where(EXECS.c.is_hidden.is_(True))
        async with self._database.session() as session:
            await self._tombstones.forget(session, before, hidden)

    async def hide_all(self, owner: str) -> int:
        mine = sa.and_(EXECS.c.owner == owner, EXECS.c.is_trial.is_(False), EXECS.c.is_hidden.is_(False))
        async with self._database.session() as session:
            result = await session.execute(sa.update(EXECS).where(mine).values(is_hidden=True))
        return result.rowcount if isinstance(result, sa.CursorResult) else 0

    async def hidden(self) -> Sequence[str]:
        query = sa.select(EXECS.c.id).where(EXECS.c.is_hidden.is_(True)).order_by(EXECS.c.created_at)
        async with self._database.session(read_only=True) as session:
            return list((await session.execute(query)).scalars())

    async def task(self, task_id: str) -> ExecTask | None:
        query = sa.select(EXECS).where(EXECS.c.id == task_id, EXECS.c.is_hidden.is_(False))
        async with self._database.session(read_only=True) as session:
            row = (await session.execute(query)).mappings().one_or_none()
        return None if row is None else _task(row)

    async def without_job(self) -> Sequence[ExecTask]:
        joined = EXECS.outerjoin(JOBS, JOBS.c.id == EXECS.c.id)
        query = sa.select(EXECS).select_from(joined).where(JOBS.c.id.is_(None), EXECS.c.is_hidden.is_(False))
        async with self._database.session(read_only=True) as session:
            rows = (await session.execute(query.order_by(EXECS.c.created_at))).mappings().all()
        return [_task(row) for row in rows]

    async def known(self, task_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        async with self._database.session(read_only=True) as session:
            for ids in _pieces(task_ids):
                found.update((await session.execute(sa.select(EXECS.c.id).where(EXECS.c.id.in_(ids)))).scalars())
        return found

    async def remove(self, task_id: str) -> None:
        async with self._database.session() as session:
            await session.execute(sa.delete(EXECS).where(EXECS.c.id == task_id))


def _pieces(task_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(task_ids), IDS_PER_STATEMENT):
        yield task_ids[start : start + IDS_PER_STATEMENT]


def _task(row: sa.RowMapping) -> ExecTask:
    spec = Spec(**row["spec"])
    return ExecTask(
        row["id"], row["owner"], row["group_id"], row["arguments"], spec, row["created_at"], row["is_trial"]
    )


def _view(row: sa.RowMapping) -> ExecView:
    values: dict[str, Any] = dict(row)
    runs_next, because = values.pop("runs_next") or "", values.pop("waits_because")
    # Of a group that is gone nothing is known.
    stopped_group = values["group_name"] if values.pop("is_started") is False else ""
    if values["state"] is None:
        for name in _OF_THE_JOB:
            del values[name]
    else:
        values["reason"] = why(State(values["state"]), values["reason"], because, runs_next, stopped_group)
    for name in ("group_name", "master_url", "execution_user"):
        values[name] = values[name] or ""
    return ExecView(**values)
