"""The loop of studies over a real database, with played jobs: a trial's result is a function of its parameters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from servicekit.database import Database
from servicekit.errors import ServiceError, invalid, not_found
from servicekit.jobs import JobFacts
from servicekit.times import utc_now
from tuning_service.algorithms.importance import importance
from tuning_service.algorithms.registry import make_algorithm
from tuning_service.domain.evaluation import Answer, Evaluation, Problem
from tuning_service.domain.plan import Plan
from tuning_service.domain.results import Results, read_results
from tuning_service.domain.study import Kind, Status, Study, Trial, TrialStatus
from tuning_service.storage.algorithms import SqlAlgorithms
from tuning_service.storage.studies import SqlStudies
from tuning_service.usecases.follow_trials import FollowTrials
from tuning_service.usecases.ports import History, SuggestionError, TrialPage
from tuning_service.usecases.run_studies import RunStudies
from tuning_service.usecases.studies import ChangeStudies

# How long an algorithm may take when a test ends.
ANSWER_SECONDS = 60.0
# What the scheduling service takes in one call.
MAX_AWAITED = 10_000
RATE = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.0, "maxDbVal": 1.0}


def request_of(**algorithm: Any) -> dict[str, Any]:
    """A search for the best `rate`; `hyperParams` and `experiments` may be given, too."""
    parts = {name: algorithm.pop(name) for name in ("hyperParams", "experiments") if name in algorithm}
    settings = {"algorithm": "Random", "objectiveMetric": "loss", "objective": "minimize", **algorithm}
    program = {"sigName": "local", "args": "--exec-start PyTorch --model-main main.py"}
    return {"modelSpec": program, "algoDef": settings, **(parts or {"hyperParams": [RATE]})}


def study_of(name: str = "first", **more: Any) -> Study:
    """A study that was just asked for."""
    fields = {
        "uid": uuid4().hex,
        "name": name,
        "kind": Kind.HYPER_SEARCH,
        "owner": "ann",
        "request": request_of(maxJobNum=5),
        "group_id": "g",
        "group_name": "local",
        "seed": 7,
        "created_at": utc_now(),
        **more,
    }
    return Study(**fields)


class PlayedJobs:
    """`ports.Jobs`, and what the scheduling service would do with them."""

    def __init__(self) -> None:
        self.facts: dict[str, JobFacts] = {}
        self.stopped: list[str] = []
        self.is_away = False
        # How jobs end that are told to stop, if not KILLED: by themselves in just that moment.
        self.stops_as: Callable[[str], str] = lambda job_id: "KILLED"
        # Otherwise the passes have to find out, which tests begin one by one.
        self.tells_ends = False
        self._news = asyncio.Event()

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        if self.is_away:
            raise ServiceError(14, "UNAVAILABLE", "scheduling is away")  # type: ignore[arg-type]
        return {uid: self.facts[uid] for uid in job_ids if uid in self.facts}

    async def stop(self, job_id: str) -> None:
        if job_id not in self.facts:
            raise not_found("job", job_id)
        self.stopped.append(job_id)
        state = self.stops_as(job_id)
        self.end(job_id, state, reason="stopped by the user" if state == "KILLED" else "")

    async def await_ends(self, job_ids: Sequence[str], seconds: float) -> set[str]:
        if len(job_ids) > MAX_AWAITED:
            raise invalid("job_ids", f"{len(job_ids)} ids", f"at most {MAX_AWAITED}")
        while not (ended := {uid for uid in job_ids if self._is_told(uid)}):
            self._news.clear()
            await self._news.wait()
        return ended

    def _is_told(self, job_id: str) -> bool:
        is_over = job_id not in self.facts or self.facts[job_id].state not in ("SUBMITTED", "RUNNING")
        return self.tells_ends and is_over

    def end(self, job_id: str, state: str, **more: Any) -> None:
        """The job has ended, unless it had."""
        if self.facts[job_id].state in ("SUBMITTED", "RUNNING"):
            self.facts[job_id] = replace(self.facts[job_id], state=state, ended_at=utc_now(), **more)
            self._news.set()


@dataclass
class PlayedRunner:
    """`ports.Runner`; `text_of` says what a program with these parameters writes as its results."""

    jobs: PlayedJobs
    text_of: Callable[[Mapping[str, Any]], str]
    started: list[Trial] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    refusal: str = ""
    parents: dict[int, str] = field(default_factory=dict)
    # Uids of trials that may have written more than is known yet.
    unsettled: set[str] = field(default_factory=set)

    async def check(self, study: Study) -> tuple[str, str]:
        return "g", "local"

    async def start(self, study: Study, plan: Plan, trial: Trial, parent: Trial | None) -> None:
        if parent is not None:
            self.parents[trial.number] = parent.uid
        if self.refusal:
            raise invalid("args", "x", self.refusal)
        if trial.uid not in self.jobs.facts:
            self.started.append(replace(trial))
            self.jobs.facts[trial.uid] = JobFacts(trial.uid, "RUNNING", started_at=utc_now(), driver_id="driver")

    async def results(self, plan: Plan, trials: Sequence[Trial], *, have_ended: bool) -> Mapping[str, Results]:
        known = [trial for trial in trials if not have_ended or trial.uid not in self.unsettled]
        return {trial.uid: read_results(self.text_of(trial.values), plan.objectives) for trial in known}

    async def delete(self, uids: Sequence[str]) -> None:
        self.deleted += uids
        for uid in uids:
            self.jobs.facts.pop(uid, None)


class InThisProcess:
    """`ports.Suggestions` without processes, and as forgetful as one that is restarted for every ask."""

    def __init__(self) -> None:
        self.asks: list[tuple[str, int]] = []
        self.error = self.says = ""

    def doing(self, study_uid: str) -> str:
        return self.says

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        if self.error:
            raise SuggestionError(self.error)
        rows = await _all(history)
        self.asks.append((study.name, count))
        return make_algorithm(algorithm, problem).ask(rows, count)

    async def importance(self, study: Study, problem: Problem, history: History) -> Mapping[str, float]:
        return importance(problem, await _all(history))

    async def forget(self, study_uid: str) -> None:
        pass


async def _all(history: History) -> list[Evaluation]:
    rows: list[Evaluation] = []
    change, is_newest = 0, False
    while not is_newest:
        page, change, is_newest = await history.since(change)
        rows += page
    return sorted(rows, key=lambda trial: trial.number)


def loss_of_rate(values: Mapping[str, Any]) -> str:
    """Best at a rate of 0.3."""
    loss = (float(values["rate"]) - 0.3) ** 2
    return json.dumps([{"step": 1, "loss": loss + 1}, {"step": 2, "loss": str(loss)}])


class StudiesRoom:
    """A database, a loop, and played peers. `restart` is what a kill of the service does."""

    def __init__(self, database: Database, text_of: Callable[[Mapping[str, Any]], str] = loss_of_rate) -> None:
        self.studies, self.algorithms = SqlStudies(database), SqlAlgorithms(database)
        self.jobs, self.suggestions = PlayedJobs(), InThisProcess()
        self.runner = PlayedRunner(self.jobs, text_of)
        # Instead of `runner`.
        self.runners: dict[Kind, Any] = {}
        self.clock = utc_now()
        self._killed: list[RunStudies] = []
        self._begin()

    def restart(self) -> None:
        """The service was killed, and begins anew."""
        self._killed.append(self.loop)
        # What it has asked goes on until it is answered: cut off in a transaction it would lose a connection.
        self.loop.passes._is_closing = True
        self._begin()

    async def close(self) -> None:
        """Nothing of the loops goes on."""
        for loop in [*self._killed, self.loop]:
            if asks := [ask for _, ask in loop._asks.values()]:
                await asyncio.wait(asks, timeout=ANSWER_SECONDS)
            await loop.close()

    def _begin(self) -> None:
        runners = {kind: self.runners.get(kind, self.runner) for kind in Kind}
        follow = FollowTrials(self.studies, runners, self.jobs, self.now)
        self.loop = RunStudies(self.studies, self.algorithms, self.suggestions, follow, self.jobs, self.now)

    @property
    def changes(self) -> ChangeStudies:
        """What users may do with searches."""
        nothing = lambda: None  # noqa: E731
        return ChangeStudies(
            Kind.HYPER_SEARCH, self.studies, self.algorithms, self.now, wake=nothing, wake_removals=nothing
        )

    def now(self) -> datetime:
        """The present, of which tests decide."""
        return self.clock

    def passes(self, seconds: float) -> None:
        """Time goes by."""
        self.clock += timedelta(seconds=seconds)

    async def add(self, name: str = "first", **more: Any) -> str:
        """A new study; its uid."""
        study = study_of(name, **more)
        await self.studies.add(study)
        return study.uid

    async def study(self, uid: str) -> Study:
        found = await self.studies.get(uid)
        assert found is not None
        return found

    async def trials(self, uid: str) -> Sequence[Trial]:
        return await self.studies.page(uid, TrialPage(length=10_000))

    async def step(self) -> None:
        """A pass over every study, and what comes of it at once."""
        await self.loop.step()
        while tasks := list(self.loop.passes.tasks.values()):
            await asyncio.gather(*tasks)

    async def steps(self, count: int = 3) -> None:
        """Some passes, until nothing more comes of them."""
        for _ in range(count):
            await self.step()

    async def until_running(self, uid: str, count: int) -> Sequence[Trial]:
        """So many trials of the study run."""
        for _ in range(50):
            await self.step()
            running = [trial for trial in await self.trials(uid) if trial.status is TrialStatus.RUNNING]
            if len(running) == count:
                return running
        raise AssertionError([str(trial.status) for trial in await self.trials(uid)])

    async def to_the_end(self, uid: str, state_of: Callable[[Trial], str] = lambda trial: "FINISHED") -> Study:
        """Every trial ends as soon as it runs, in the state that is said."""
        for _ in range(2000):
            await self.step()
            study = await self.study(uid)
            for trial in await self.studies.open_trials(uid):
                if trial.uid in self.jobs.facts:
                    self.jobs.end(trial.uid, state_of(trial), reason="rank 0 exited with code 1")
            if study.status in (Status.FINISHED, Status.FAILED, Status.STOPPED):
                await self.steps(2)
                return await self.study(uid)
        raise AssertionError(study)
