"""Jobs as a client asks for them: filtered, sorted, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from servicekit.errors import invalid, out_of_range
from servicekit.identity import Identity

from scheduling_service.domain.job import Job, State
from scheduling_service.usecases.ports import Jobs, Query, SortKey


class ListApplications:
    """An administrator sees every job, a user their own."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def __call__(self, identity: Identity, query: Query) -> Sequence[Job]:
        """The page; 416 when it starts past the end."""
        if query.length is not None and query.length < 0:
            raise out_of_range("length", query.length, "0 or more")
        if query.start < 0:
            raise out_of_range("start", query.start, "0 or more")
        rows, total = await self._jobs.search(replace(query, owner=None if identity.is_admin else identity.user))
        if query.start > total:
            raise out_of_range("start", query.start, f"0 to {total}")
        return rows


def sort_order(sort: str, order: str) -> tuple[SortKey, bool]:
    """The key and whether it descends, of `sort` ("-" before it turns it round) and `order` (asc or desc).

    400 names what is wrong. Without either the newest come first.
    """
    if order.lower() not in {"", "asc", "desc"}:
        raise invalid("order", order, ("asc", "desc"))
    name = sort.removeprefix("-")
    if not name:
        return SortKey.SUBMITTED, order.lower() != "asc"
    if name not in set(SortKey):
        raise invalid("sort", sort, [*SortKey, "each also with '-' before it"])
    return SortKey(name), sort.startswith("-") != (order.lower() == "desc")


def states(words: Sequence[str]) -> Sequence[str]:
    """Upper-case states; 400 lists the known."""
    known = [state.value for state in State]
    for word in words:
        if word.upper() not in known:
            raise invalid("state", word, known)
    return [word.upper() for word in words]
