"""Rows of trials, and the trials that they are. Thousands are read at once: all their JSON is parsed as one text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from tuning_service.domain.results import MetricRange
from tuning_service.domain.study import Trial, TrialStatus
from tuning_service.storage.tables import StudyRow, TrialRow

_JSON = ("values", "place", "notes", "objectives", "metrics", "curve", "earlier_uids")
_PLAIN = tuple(name for name in Trial.__dataclass_fields__ if name not in _JSON)
# What only the loop needs, and what algorithms do not see; those that know of places need no values.
NOT_SHOWN = frozenset({"place", "curve", "earlier_uids"})
NOT_LEARNT = frozenset({"metrics", "curve"})
ONLY_PLACES = NOT_LEARNT | {"values"}


def select_trials(left_out: frozenset[str] = frozenset()) -> sa.Select[Any]:
    """A query for trials, for `read_trials`: plain columns, then the texts of the JSON ones."""
    texts = [sa.cast(getattr(TrialRow, name), sa.Text) for name in _JSON if name not in left_out]
    return sa.select(*(getattr(TrialRow, name) for name in _PLAIN), *texts)


async def read_trials(
    session: AsyncSession, query: sa.Select[Any], left_out: frozenset[str] = frozenset()
) -> list[Trial]:
    """The trials of a query that `select_trials` began, with the same parts `left_out`; those are empty."""
    rows = (await session.execute(query)).all()
    names = [name for name in _JSON if name not in left_out]
    first = len(_PLAIN)
    texts = (text or "null" for row in rows for text in row[first : first + len(names)])
    parsed = iter(json.loads(f"[{','.join(texts)}]"))
    return [_trial(dict(zip(_PLAIN, row, strict=False)) | {name: next(parsed) for name in names}) for row in rows]


def shown_size() -> sa.ColumnElement[int]:
    """About how much of a row is shown, in bytes."""
    columns = (TrialRow.values, TrialRow.metrics, TrialRow.message)
    return sum((sa.func.length(sa.cast(column, sa.Text)) for column in columns), sa.literal(0))


def newest_trials(some: sa.ColumnElement[bool], length: int) -> sa.Subquery:
    """Uids and numbers of the newest `length` trials of some studies, and what each takes `together` with those before
    it: first the newest one of each study, then the one before it of each, and so on."""
    age = StudyRow.trials - TrialRow.number
    together = sa.func.sum(shown_size()).over(order_by=(age, TrialRow.study_uid)).label("together")
    query = sa.select(TrialRow.study_uid, TrialRow.number, together)
    return query.join(StudyRow, StudyRow.uid == TrialRow.study_uid).where(some, age < length).subquery()


def within(sizes: Iterable[int], most_bytes: int) -> int:
    """How many of the first have room; one at least, if there is one."""
    together = itertools.accumulate(sizes)
    return max(1, sum(1 for _ in itertools.takewhile(lambda total: total <= most_bytes, together)))


def trial_columns(trial: Trial) -> dict[str, Any]:
    """What a row holds of it."""
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


def by_column(values: Mapping[str, Any]) -> dict[Any, Any]:
    """`values` is a method of rows: columns by attribute."""
    return {getattr(TrialRow, name): value for name, value in values.items()}


def _trial(values: dict[str, Any]) -> Trial:
    values["status"] = TrialStatus(values["status"])
    values.setdefault("values", {})
    if values.get("place") is not None:
        values["place"] = tuple(values["place"])
    for name in ("objectives", "earlier_uids"):
        values[name] = tuple(values.get(name) or ())
    if "metrics" in values:
        values["metrics"] = {name: MetricRange(*numbers) for name, numbers in values["metrics"].items()}
    if "curve" in values:
        values["curve"] = tuple(map(tuple, values["curve"]))
    return Trial(**values)
