"""Jobs as a client asks for them: filtered, sorted, a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from servicekit.errors import invalid, out_of_range
from servicekit.identity import Identity

from scheduling_service.domain.job import Job, State
from scheduling_service.usecases.ports import Jobs

# REST names of the fields that a list may be sorted by.
SORT_KEYS: dict[str, Callable[[Job], Any]] = {
    "applicationid": lambda job: job.id,
    "applicationname": lambda job: job.spec.application_name or job.spec.name,
    "state": lambda job: job.state.value,
    "username": lambda job: job.spec.owner,
    "submittedtime": lambda job: job.created_at,
    "endtime": lambda job: (job.ended_at is None, job.ended_at or job.created_at),
    "slots": lambda job: job.spec.ranks,
    "model": lambda job: job.spec.model,
    "dataset": lambda job: job.spec.dataset,
}


@dataclass(frozen=True)
class Query:
    """Empty filters match everything; `length` -1 is all."""

    ids: Sequence[str] = ()
    name: str = ""
    driver_id: str = ""
    search: str = ""
    states: Sequence[str] = ()
    group: str = ""
    sort: str = ""
    order: str = ""
    start: int = 0
    length: int = -1


class ListApplications:
    """An administrator sees every job, a user their own."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def __call__(self, identity: Identity, query: Query, group_id: str | None) -> Sequence[Job]:
        """The page; 400 names a wrong parameter, 416 a start past the end."""
        known = {state.value for state in State}
        for state in query.states:
            if state.upper() not in known:
                raise invalid("state", state, known)
        key, descending = _sort_key(query)
        found = await self._jobs.search(None if identity.is_admin else identity.user)
        rows = [job for job in found if _matches(job, query, group_id)]
        if key is not None:
            rows.sort(key=key, reverse=descending)
        if query.start < 0 or query.start > len(rows):
            raise out_of_range("start", query.start, f"0 to {len(rows)}")
        if query.length < -1:
            raise out_of_range("length", query.length, "0 or more")
        end = None if query.length == -1 else query.start + query.length
        return rows[query.start : end]


def _sort_key(query: Query) -> tuple[Callable[[Job], Any] | None, bool]:
    name = query.sort.removeprefix("-")
    if query.order.lower() not in {"", "asc", "desc"}:
        raise invalid("order", query.order, ("asc", "desc"))
    if not name:
        return None, False
    if name not in SORT_KEYS:
        raise invalid("sort", query.sort, [*SORT_KEYS, "each also with '-' before it"])
    return SORT_KEYS[name], query.sort.startswith("-") != (query.order.lower() == "desc")


def _matches(job: Job, query: Query, group_id: str | None) -> bool:
    name = job.spec.application_name or job.spec.name
    return (
        (not query.ids or job.id in query.ids)
        and (not query.name or name == query.name)
        and (not query.driver_id or query.driver_id == f"driver-{job.id}")
        and (not query.search or query.search.lower() in f"{name} {job.id} {job.spec.model}".lower())
        and (not query.states or job.state.value in {state.upper() for state in query.states})
        and (group_id is None or job.group_id == group_id)
    )
