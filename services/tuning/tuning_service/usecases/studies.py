"""Look at, stop, restart and delete studies; the same for hyperparameter searches and tunings of models."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from servicekit.errors import ServiceError, conflict, invalid, not_found
from servicekit.identity import current_identity

from tuning_service.domain.fields import Fields
from tuning_service.domain.pareto import front
from tuning_service.domain.plan import MAX_MINUTES, MAX_TRIALS, Plan, outline
from tuning_service.domain.study import Kind, Status, Study, Trial
from tuning_service.usecases.ports import (
    Algorithms,
    Fronts,
    Studies,
    SuggestionError,
    Suggestions,
    TrialPage,
    Wake,
)
from tuning_service.usecases.start_hyper_search import read_request
from tuning_service.usecases.stored_plans import stored_plan
from tuning_service.usecases.trials import TrialHistory, problem_of

# What one answer holds unless something else is asked for, and at most: a study, and a page of trials.
SHOWN_TRIALS, PAGE_TRIALS = 1000, 100
MAX_SHOWN_TRIALS = 10_000
# Fewer when they take more than this, as they do with many or long parameters.
SHOWN_BYTES = 4 * 1024 * 1024
# The same of each study in a list, and of all of them.
LISTED_TRIALS, MAX_LISTED_TRIALS = 100, 1000
# Of as many studies it is known what their parameters explain.
KEPT_IMPORTANCES = 100
# A study, its last beginning, and how many of its trials have ended: those decide.
_Moment = tuple[str, datetime | None, int]


@dataclass(frozen=True)
class StudyView:
    """A study with some of its trials, by number, and its best one."""

    study: Study
    trials: Sequence[Trial]
    best: Trial | None


@dataclass(frozen=True)
class Budget:
    """What a restart changes of a study's limits; None leaves one as it is, -1 takes it away."""

    max_trials: int | None = None
    max_minutes: float | None = None


class FindStudies:
    """Studies of one kind as their users see them. Unknown ones are NOT_FOUND; other users' are 403."""

    def __init__(self, kind: Kind, studies: Studies) -> None:
        self._kind, self._studies = kind, studies

    async def get(self, name: str, model_uid: str = "") -> Study:
        """One study."""
        study = await self._studies.find(self._kind, model_uid, name)
        if study is None:
            raise not_found(self._kind.word, name)
        current_identity().require_access(self._kind.word, name, study.owner)
        return study

    async def views(self, *, model_uid: str = "", length: int | None = None) -> Sequence[StudyView]:
        """Those that the caller may see, oldest first, each with its newest `length` trials: as many as there are, but
        at most LISTED_TRIALS, and fewer of each when all would have more than MAX_LISTED_TRIALS."""
        if length is not None and not 0 <= length <= LISTED_TRIALS:
            raise invalid("length", length, f"0 to {LISTED_TRIALS}")
        identity = current_identity()
        owner = None if identity.is_admin else identity.user
        studies = await self._studies.of_kind(self._kind, model_uid=model_uid, owner=owner)
        length = min(LISTED_TRIALS if length is None else length, MAX_LISTED_TRIALS // max(1, len(studies)))
        shown = await self._studies.shown([study.uid for study in studies], length)
        return [_view(study, shown[study.uid], length) for study in studies]

    async def view(self, study: Study, *, start: int | None = None, length: int = 0) -> StudyView:
        """A study with a page of its trials, in their order: the newest ones when `start` is None; SHOWN_TRIALS of them
        when `length` is 0."""
        page = TrialPage(start or 0, length or SHOWN_TRIALS, newest_first=start is None)
        trials = sorted(await self.page(study, page), key=lambda trial: trial.number)
        best = next((trial for trial in trials if trial.number == study.best), None)
        if best is None and study.best:
            best = next(iter(await self._studies.numbered(study.uid, [study.best])), None)
        return StudyView(study, trials, best)

    async def page(self, study: Study, page: TrialPage) -> Sequence[Trial]:
        """Some trials, without places, curves and earlier runs; fewer than asked for when they are large."""
        check_page(page)
        return await self._studies.page(study.uid, replace(page, most_bytes=SHOWN_BYTES), is_slim=True)


def check_page(page: TrialPage) -> None:
    """400 for one that there cannot be."""
    if page.start < 0:
        raise invalid("start", page.start, "a number from 0 on")
    if not 1 <= page.length <= MAX_SHOWN_TRIALS:
        raise invalid("length", page.length, f"1 to {MAX_SHOWN_TRIALS}; 0 for as many as when it is not given")


def _view(study: Study, trials: Sequence[Trial], length: int) -> StudyView:
    """Of `trials`, which have the best one beside them."""
    newest: list[Trial] = []
    for trial in reversed(trials):
        # Without a gap from the newest on: there may have been room for some only.
        is_next = trial.number == newest[-1].number - 1 if newest else trial.number >= study.counts.trials
        if not is_next or trial.number <= study.counts.trials - length:
            break
        newest.append(trial)
    newest.reverse()
    return StudyView(study, newest, next((trial for trial in trials if trial.number == study.best), None))


class Importance:
    """What part each parameter of a study has in the difference between its trials."""

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        suggestions: Suggestions,
    ) -> None:
        self._studies, self._algorithms, self._suggestions = studies, algorithms, suggestions
        # Those that go on, and the newest that were found.
        self._searches: OrderedDict[_Moment, asyncio.Task[Sequence[tuple[str, float]]]] = OrderedDict()

    async def __call__(self, study: Study) -> Sequence[tuple[str, float]]:
        """Names and parts, the most important first; 400 while that cannot be said. Who asks while it is being found,
        or before another trial has ended, gets the same answer."""
        moment = study.uid, study.resumed_at, study.counts.ended
        search = self._searches.get(moment)
        if search is None:
            search = self._searches[moment] = asyncio.ensure_future(self._find(study))
            search.add_done_callback(lambda done: self._keep(moment, done))
        # Another one may wait for it when this caller has gone.
        return await asyncio.shield(search)

    def _keep(self, moment: _Moment, done: asyncio.Task[Sequence[tuple[str, float]]]) -> None:
        if done.cancelled() or done.exception():
            self._searches.pop(moment, None)
            return
        self._searches.move_to_end(moment)
        found = [known for known, search in self._searches.items() if search.done()]
        for known in found[:-KEPT_IMPORTANCES]:
            del self._searches[known]

    async def _find(self, study: Study) -> Sequence[tuple[str, float]]:
        plan = await stored_plan(study, self._algorithms)
        history = TrialHistory(self._studies, study, plan, by_values=True)
        try:
            found = await self._suggestions.importance(study, problem_of(study, plan), history)
        except SuggestionError as error:
            raise invalid("hpoName", study.name, f"a study whose parameters can be compared ({error})") from error
        if not found:
            raise invalid("hpoName", study.name, "a study that searches something, with at least 8 finished trials")
        return sorted(found.items(), key=lambda one: (-one[1], one[0]))


class ParetoFront:
    """The trials of a study that none is better than in all objectives. Who asks while it is being found waits for the
    same answer."""

    def __init__(self, studies: Studies, algorithms: Algorithms, fronts: Fronts) -> None:
        self._studies, self._algorithms, self._fronts = studies, algorithms, fronts
        self._searches: dict[tuple[str, int], asyncio.Task[Sequence[int]]] = {}

    async def __call__(self, study: Study, page: TrialPage) -> Sequence[Trial]:
        """A page of the first MAX_SHOWN_TRIALS by their objectives, the best first; fewer than asked for when they
        are large."""
        check_page(page)
        # What has ended decides: the same as long as no other trial has.
        key = (study.uid, study.counts.ended)
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = asyncio.ensure_future(self._find(study))
            search.add_done_callback(lambda _: self._searches.pop(key, None))
        # Another one may wait for it when this caller has gone.
        numbers = (await asyncio.shield(search))[page.start : page.start + page.length]
        numbers = await self._studies.first_with_room(study.uid, numbers, SHOWN_BYTES)
        found = {trial.number: trial for trial in await self._studies.numbered(study.uid, numbers)}
        return [found[number] for number in numbers if number in found]

    async def _find(self, study: Study) -> Sequence[int]:
        plan = await stored_plan(study, self._algorithms)
        objectives = await self._studies.objectives_of(study.uid)
        if len(plan.objectives) > 2:
            losses = await asyncio.to_thread(_losses, objectives, plan)
            return await self._fronts.front(losses, MAX_SHOWN_TRIALS)
        return (await asyncio.to_thread(lambda: front(_losses(objectives, plan))))[:MAX_SHOWN_TRIALS]


def _losses(values: Sequence[tuple[int, Sequence[float]]], plan: Plan) -> list[tuple[int, list[float]]]:
    return [
        (number, [objective.loss(value) for objective, value in zip(plan.objectives, found, strict=True)])
        for number, found in values
    ]


class ChangeStudies:
    """Stop, restart and delete studies of one kind."""

    def __init__(
        self,
        kind: Kind,
        studies: Studies,
        algorithms: Algorithms,
        now: Callable[[], datetime],
        *,
        wake: Wake,
        wake_removals: Wake,
    ) -> None:
        self._kind, self._studies, self._algorithms, self._now = kind, studies, algorithms, now
        self._wake, self._wake_removals = wake, wake_removals

    async def stop(self, study: Study, *, at_once: bool) -> None:
        """Order the end of its trials, and its own after them or, `at_once`, now. 400 when it has ended."""
        if not await self._studies.request_stop(study.uid, self._now(), at_once=at_once):
            raise _already_ended(study)
        self._wake()

    async def restart(self, study: Study, budget: Budget) -> None:
        """Go on, with another budget if one is given; 409 while it runs, 400 when nothing would be left to do."""
        if not study.status.is_final:
            raise conflict(f"{self._kind.word} {study.name!r} is {study.status}", reason="IN_USE")
        request = _with_budget(study, budget)
        plan = await read_request(Fields("", request), self._algorithms, self._kind)
        begun = study.counts.trials
        if plan.max_trials is not None and plan.max_trials <= begun:
            # What a stop cut off is to be run again.
            is_left = await self._studies.cut_off(study.uid) > 0
            if plan.max_trials < begun or not is_left:
                least = "at least" if is_left else "more than"
                raise invalid("maxJobNum", plan.max_trials, f"{least} the {begun} that it has run, or -1 for no limit")
        if study.status is Status.FINISHED and study.is_exhausted and budget == Budget():
            raise invalid("maxJobNum", "", "a study with something left to try; this one has tried everything")
        if plan.max_seconds is not None and study.seconds(self._now()) >= plan.max_seconds:
            allowed = f"more minutes than the {study.seconds(self._now()) / 60:.1f} that it has run, or -1 for no limit"
            raise invalid("maxRunTime", plan.max_seconds / 60, allowed)
        study.request, study.most_trials = request, outline(Fields("", request), plan)["most_trials"]
        study.resume(self._now())
        await self._studies.resume(study, lambda: uuid4().hex)
        self._wake()

    async def delete(self, study: Study) -> None:
        """Take it out of sight, and order its trials and files removed; 409 while it runs."""
        await self._studies.delete(study.uid, self._now())
        self._wake_removals()

    async def delete_all(self) -> None:
        """The same for all of the caller's; 409, and none is deleted, when one runs."""
        await self._studies.delete_all(self._kind, current_identity().user, self._now())
        self._wake_removals()


def _with_budget(study: Study, budget: Budget) -> dict[str, object]:
    request = dict(study.request)
    settings = dict(Fields("", request).object("algoDef"))
    if budget.max_trials is not None:
        if budget.max_trials != -1 and not 1 <= budget.max_trials <= MAX_TRIALS:
            raise invalid("maxJobNum", budget.max_trials, f"1 to {MAX_TRIALS}, or -1 for no limit")
        settings["maxJobNum"] = budget.max_trials
    if budget.max_minutes is not None:
        if budget.max_minutes != -1 and not 0 < budget.max_minutes <= MAX_MINUTES:
            raise invalid("maxRunTime", budget.max_minutes, f"minutes, up to {MAX_MINUTES}, or -1 for no limit")
        settings["maxRunTime"] = budget.max_minutes
    return request | {"algoDef": settings}


def _already_ended(study: Study) -> ServiceError:
    return invalid("hpoName", study.name, f"a task that runs; this one is already stopped ({study.status})")
