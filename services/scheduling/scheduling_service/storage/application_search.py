"""Lists of jobs in SQL: what a query matches, in which order, one page of it."""

from __future__ import annotations

import functools
import getpass
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import UtcDateTime
from servicekit.times import utc_now
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from scheduling_service.domain.application import job_of_driver
from scheduling_service.storage.tables import GROUPS, JOBS
from scheduling_service.usecases.ports import Query, SortKey

_Expression = sa.ColumnElement[Any]

# The order of submission, and what is the same for all.
_BY_AGE = frozenset({SortKey.SUBMITTED, SortKey.TYPE, SortKey.IS_SHARED})
_OF_GROUP = frozenset(
    {
        *(SortKey.DRIVER_USER, SortKey.EXECUTOR_USER, SortKey.MASTER_URL, SortKey.SCHEDULE, SortKey.MASTER_SERVICE),
        *(SortKey.GROUP_NAME, SortKey.HISTORY_SERVER_URL),
    }
)
_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


class _seconds_between(FunctionElement[float]):  # noqa: N801  reads as a function
    """From the first to the second of two moments."""

    inherit_cache = True
    type = sa.Float()


@compiles(_seconds_between)
def _on_postgresql(element: _seconds_between, compiler: Any, **options: Any) -> str:
    first, second = (compiler.process(clause, **options) for clause in element.clauses)
    return f"EXTRACT(EPOCH FROM ({second}) - ({first}))"


@compiles(_seconds_between, "sqlite")
def _on_sqlite(element: _seconds_between, compiler: Any, **options: Any) -> str:
    first, second = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(julianday({second}) - julianday({first})) * 86400.0"


def numbers(query: Query) -> sa.Select[Any]:
    """Sequence numbers of the page, in order. They are cut from short entries; whole rows are read of the page only."""
    found = sa.select(JOBS.c.sequence).where(matching(query)).order_by(*_order(query)).offset(query.start)
    if query.sort in _OF_GROUP:
        # A group may be gone while jobs that ended there are kept.
        found = found.select_from(JOBS.outerjoin(GROUPS, GROUPS.c.id == JOBS.c.group_id))
    return found if query.length is None else found.limit(query.length)


def count(query: Query) -> sa.Select[Any]:
    """How many rows match."""
    return sa.select(sa.func.count()).select_from(JOBS).where(matching(query))


def matching(query: Query) -> sa.ColumnElement[bool]:
    return sa.and_(sa.true(), *_conditions(query))


def _conditions(query: Query) -> Iterator[sa.ColumnElement[bool]]:
    if query.owner is not None:
        yield JOBS.c.owner == query.owner
    if query.application_ids:
        ids = list(query.application_ids)
        yield sa.or_(JOBS.c.id.in_(ids), JOBS.c.application_id.in_(ids))
    if query.driver_id:
        yield sa.or_(JOBS.c.driver_id == query.driver_id, JOBS.c.id == job_of_driver(query.driver_id))
    if query.named:
        own = JOBS.c.id == job_of_driver(query.named)
        yield sa.or_(own, JOBS.c.application_id == query.named, JOBS.c.driver_id == query.named)
    if query.name:
        yield JOBS.c.name == query.name
    if query.states:
        yield JOBS.c.state.in_(list(query.states))
    if query.group_id is not None:
        yield JOBS.c.group_id == query.group_id
    if query.search:
        columns = (JOBS.c.name, JOBS.c.id, JOBS.c.model, JOBS.c.application_id, JOBS.c.driver_id)
        yield sa.or_(*(column.icontains(query.search, autoescape=True) for column in columns))


def _order(query: Query) -> list[_Expression]:
    # The second key goes the way of the first: so an index on both is read from either end.
    keys: list[_Expression] = [JOBS.c.sequence]
    if query.sort is SortKey.DURATION:
        keys.insert(0, _duration())
    elif query.sort not in _BY_AGE:
        keys.insert(0, _orders()[query.sort])
    ordered: list[_Expression] = [key.desc() if query.descending else key.asc() for key in keys]
    if query.sort is SortKey.ENDED:
        # What has not ended is 0 for clients; databases differ.
        ordered[0] = ordered[0].nulls_last() if query.descending else ordered[0].nulls_first()
    return ordered


def _duration() -> _Expression:
    return sa.func.coalesce(
        _seconds_between(JOBS.c.started_at, sa.func.coalesce(JOBS.c.ended_at, _moment(utc_now()))), 0.0
    )


@functools.cache
def _orders() -> Mapping[SortKey, _Expression]:
    own_user = sa.literal(getpass.getuser())
    user = sa.case(
        (GROUPS.c.id.is_(None), ""), else_=sa.func.coalesce(sa.func.nullif(GROUPS.c.execution_user, ""), own_user)
    )
    done, total = JOBS.c.progress["done"].as_float(), JOBS.c.progress["total"].as_float()
    return {
        SortKey.GROUP_ID: JOBS.c.group_id,
        SortKey.ID: sa.func.coalesce(sa.func.nullif(JOBS.c.application_id, ""), JOBS.c.id),
        SortKey.NAME: JOBS.c.name,
        SortKey.STATE: JOBS.c.state,
        SortKey.DRIVER: sa.func.coalesce(sa.func.nullif(JOBS.c.driver_id, ""), "driver-" + JOBS.c.id),
        SortKey.EXECUTORS: JOBS.c.current_ranks,
        SortKey.SLOTS: sa.case((JOBS.c.state == "RUNNING", JOBS.c.current_ranks), else_=0),
        SortKey.DEMANDED_SLOTS: sa.case((JOBS.c.state == "SUBMITTED", JOBS.c.fewest_slots), else_=0),
        SortKey.OWNER: JOBS.c.owner,
        SortKey.DRIVER_USER: user,
        SortKey.EXECUTOR_USER: user,
        SortKey.UPDATED: sa.func.coalesce(JOBS.c.ended_at, _moment(_END_OF_TIME)),
        SortKey.MASTER_URL: _of_group(GROUPS.c.master_url),
        SortKey.ENDED: JOBS.c.ended_at,
        SortKey.SCHEDULE: _of_group(GROUPS.c.policy),
        SortKey.MASTER_SEQUENCE: JOBS.c.attempt,
        SortKey.MASTER_SERVICE: _of_group(GROUPS.c.engine),
        SortKey.MODEL: JOBS.c.model,
        SortKey.DATASET: JOBS.c.dataset,
        SortKey.FRAMEWORK: JOBS.c.framework,
        SortKey.TUNING: JOBS.c.study,
        SortKey.GROUP_NAME: _of_group(GROUPS.c.name),
        SortKey.HISTORY_SERVER_URL: _of_group(GROUPS.c.history_server_url),
        SortKey.STATUS_MESSAGE: sa.func.coalesce(sa.func.nullif(JOBS.c.reason, ""), JOBS.c.waits_because),
        SortKey.PROGRESS: sa.func.coalesce(done / sa.func.nullif(total, 0.0), -1.0),
        SortKey.PRIORITY: JOBS.c.priority,
    }


def _of_group(column: _Expression) -> _Expression:
    return sa.func.coalesce(column, "")


def _moment(at: datetime) -> _Expression:
    return sa.literal(at, UtcDateTime())
