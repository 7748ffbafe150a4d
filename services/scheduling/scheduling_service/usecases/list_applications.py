"""Jobs as a client asks for them: filtered, sorted, a page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from servicekit.errors import invalid, out_of_range
from servicekit.identity import Identity

from scheduling_service.domain.attempt_facts import AttemptFacts, ProcessFacts
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, State
from scheduling_service.usecases.describe_attempts import DescribeAttempts, Patience
from scheduling_service.usecases.ports import LIVE_KEYS, Groups, Jobs, Query, SortKey
from scheduling_service.usecases.waiting_reasons import WaitingReasons

ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class Application:
    """A job for clients. `group` is None when it is gone, `facts` before the first attempt and when nobody asked."""

    job: Job
    status_message: str
    group: InstanceGroup | None = None
    facts: AttemptFacts | None = None

    @property
    def is_running(self) -> bool:
        return self.job.state is State.RUNNING

    @property
    def hosts(self) -> int:
        """On which its ranks run now."""
        ranks = self.facts.executors if self.facts and self.is_running else ()
        return len({rank.host for rank in ranks if rank.host})

    @property
    def cores_used(self) -> float:
        """Of driver and ranks."""
        return sum(process.cores_used for process in self._processes)

    @property
    def memory_mb(self) -> float:
        """Of driver and ranks."""
        return sum(process.memory_mb for process in self._processes)

    @property
    def gpu_slots(self) -> int:
        """GPUs that it holds, or shares, now."""
        return len({device for devices in self.job.gpus for device in devices}) if self.is_running else 0

    @property
    def gpu_memory_mb(self) -> float:
        """Of driver and ranks."""
        return sum(process.gpu_memory_mb for process in self._processes)

    @property
    def gpu_utilization(self) -> float:
        """Per cent, summed over its ranks."""
        return sum(process.gpu_utilization for process in self._processes)

    @property
    def ui_port(self) -> str:
        """Of the engine's own page about it, empty where there is none."""
        return self.facts.ui_port if self.facts and self.is_running else ""

    @property
    def _processes(self) -> Sequence[ProcessFacts]:
        return (self.facts.driver, *self.facts.executors) if self.facts and self.is_running else ()


class ListApplications:
    """An administrator sees every job, a user their own."""

    def __init__(self, jobs: Jobs, groups: Groups, reasons: WaitingReasons, describe: DescribeAttempts) -> None:
        self._jobs, self._groups, self._reasons, self._describe = jobs, groups, reasons, describe

    async def __call__(
        self, identity: Identity, query: Query, *, with_facts: bool = True
    ) -> AsyncIterator[Application]:
        """The page; 416 when it starts past the end. `query.sort` may be one of `LIVE_KEYS` here."""
        if query.length is not None and query.length < 0:
            raise out_of_range("length", query.length, "0 or more")
        if query.start < 0:
            raise out_of_range("start", query.start, "0 or more")
        query = replace(query, owner=None if identity.is_admin else identity.user)
        running: Sequence[Application] = ()
        if query.sort in LIVE_KEYS:
            running, numbers = await self._by_what_runs(query)
        else:
            numbers = await self._jobs.search(query)
        if query.start and not running and not numbers:
            total = await self._jobs.count(query)
            if query.start > total:
                raise out_of_range("start", query.start, f"0 to {total}")
        if query.descending:
            for application in running:
                yield application
        patience = Patience()
        # Rows are long: a list of all jobs must neither fill the memory nor keep everybody else waiting.
        for first in range(0, len(numbers), ROWS_AT_ONCE):
            jobs = await self._jobs.numbered(numbers[first : first + ROWS_AT_ONCE])
            for application in await self._applications(jobs, patience, with_facts=with_facts):
                yield application
        if not query.descending:
            for application in running:
                yield application

    async def _applications(self, jobs: Sequence[Job], patience: Patience, *, with_facts: bool) -> list[Application]:
        groups = {group.id: group for group in await self._groups.all()}
        reasons = await self._reasons(jobs)
        facts = await self._describe(jobs, groups, patience) if with_facts else {}
        return [Application(job, reasons[job.id], groups.get(job.group_id), facts.get(job.id)) for job in jobs]

    async def _by_what_runs(self, query: Query) -> tuple[Sequence[Application], Sequence[int]]:
        """The page by a key that only running jobs have: those of them that are on it, and the numbers of the others,
        which are all equal and come behind them, or before them when the order is ascending."""
        wanted = {State(word) for word in query.states} or set(State)
        by_age = replace(query, sort=SortKey.SUBMITTED)
        running: list[Application] = []
        if State.RUNNING in wanted:
            found = await self._jobs.search(replace(by_age, states=[State.RUNNING.value], start=0, length=None))
            patience = Patience()
            for first in range(0, len(found), ROWS_AT_ONCE):
                jobs = await self._jobs.numbered(found[first : first + ROWS_AT_ONCE])
                running += await self._applications(jobs, patience, with_facts=True)
            running.sort(key=lambda each: _live_value(each, query.sort), reverse=query.descending)
        others = replace(by_age, states=sorted(state.value for state in wanted - {State.RUNNING}))
        count = await self._jobs.count(others) if others.states else 0
        before, shift = (len(running), 0) if query.descending else (0, count)
        end = None if query.length is None else query.start + query.length
        start = max(0, query.start - before)
        length = None if end is None else max(0, end - before - start)
        numbers = await self._jobs.search(replace(others, start=start, length=length)) if count else ()
        return running[max(0, query.start - shift) : None if end is None else max(0, end - shift)], numbers


def _live_value(application: Application, key: SortKey) -> float:
    match key:
        case SortKey.HOSTS:
            return application.hosts
        case SortKey.CORES_USED:
            return application.cores_used
        case SortKey.MEMORY_USED:
            return application.memory_mb
        case SortKey.GPU_SLOTS:
            return application.gpu_slots
        case SortKey.GPU_MEMORY:
            return application.gpu_memory_mb
        case SortKey.GPU_UTILIZATION:
            return application.gpu_utilization
        case _:
            return float(application.ui_port or 0) if application.ui_port.isdecimal() else 0.0


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
