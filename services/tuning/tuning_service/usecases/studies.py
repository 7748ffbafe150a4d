"""Look at, stop, restart and delete studies; the same for hyperparameter searches and tunings of models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from servicekit.errors import ServiceError, conflict, invalid, not_found
from servicekit.identity import current_identity

from tuning_service.domain.fields import Fields
from tuning_service.domain.pareto import front
from tuning_service.domain.plan import MAX_MINUTES, MAX_TRIALS
from tuning_service.domain.study import Kind, Status, Study, Trial
from tuning_service.usecases.ports import Algorithms, Studies, SuggestionError, Suggestions, TrialPage, Wake
from tuning_service.usecases.start_hyper_search import read_request
from tuning_service.usecases.trials import TrialHistory, problem_of

# What one answer holds unless more is asked for, and at most.
SHOWN_TRIALS = 1000
MAX_SHOWN_TRIALS = 10_000
WORDS = {Kind.HYPER_SEARCH: "HPO task", Kind.MODEL_TUNING: "tuning"}


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
            raise not_found(WORDS[self._kind], name)
        current_identity().require_access(WORDS[self._kind], name, study.owner)
        return study

    async def visible(self, model_uid: str = "") -> Sequence[Study]:
        """Those that the caller may see, oldest first."""
        identity = current_identity()
        owner = None if identity.is_admin else identity.user
        return await self._studies.of_kind(self._kind, model_uid=model_uid, owner=owner)

    async def own(self) -> Sequence[Study]:
        """The caller's own, oldest first."""
        return await self._studies.of_kind(self._kind, owner=current_identity().user)

    async def view(self, study: Study, *, start: int | None = None, length: int = 0) -> StudyView:
        """A study with a page of its trials, in their order: the newest ones when `start` is None."""
        if start is None:
            newest = await self.page(study, TrialPage(0, length, newest_first=True))
            trials = list(newest)[::-1]
        else:
            trials = list(await self.page(study, TrialPage(start, length)))
        best = next((trial for trial in trials if trial.number == study.best), None)
        if best is None and study.best:
            best = next(iter(await self._studies.numbered(study.uid, [study.best])), None)
        return StudyView(study, trials, best)

    async def page(self, study: Study, page: TrialPage) -> Sequence[Trial]:
        """Some trials; a `length` of 0 is SHOWN_TRIALS."""
        if page.start < 0:
            raise invalid("start", page.start, "a number from 0 on")
        if not 0 <= page.length <= MAX_SHOWN_TRIALS:
            raise invalid("length", page.length, f"1 to {MAX_SHOWN_TRIALS}; 0 is {SHOWN_TRIALS}")
        return await self._studies.page(study.uid, replace(page, length=page.length or SHOWN_TRIALS))


class Importance:
    """What part each parameter of a study has in the difference between its trials."""

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        suggestions: Suggestions,
        *,
        experiment_parameters: str = "hyperParams",
    ) -> None:
        self._studies, self._algorithms, self._suggestions = studies, algorithms, suggestions
        self._experiment_parameters = experiment_parameters

    async def __call__(self, study: Study) -> Sequence[tuple[str, float]]:
        """Names and parts, the most important first; 400 while that cannot be said."""
        names = self._experiment_parameters
        plan = await read_request(Fields("", study.request), self._algorithms, experiment_parameters=names)
        history = TrialHistory(self._studies, study, plan, by_values=True)
        try:
            found = await self._suggestions.importance(study, problem_of(study, plan), history)
        except SuggestionError as error:
            raise invalid("hpoName", study.name, f"a study whose parameters can be compared ({error})") from error
        if not found:
            raise invalid("hpoName", study.name, "a study that searches something, with at least 8 finished trials")
        return sorted(found.items(), key=lambda one: (-one[1], one[0]))


class ParetoFront:
    """The trials of a study that none is better than in all objectives."""

    def __init__(self, studies: Studies, algorithms: Algorithms, *, experiment_parameters: str = "hyperParams") -> None:
        self._studies, self._algorithms = studies, algorithms
        self._experiment_parameters = experiment_parameters

    async def __call__(self, study: Study) -> Sequence[Trial]:
        """By their first objective, the best first; at most MAX_SHOWN_TRIALS."""
        names = self._experiment_parameters
        plan = await read_request(Fields("", study.request), self._algorithms, experiment_parameters=names)
        losses = [
            (number, [objective.loss(value) for objective, value in zip(plan.objectives, values, strict=True)])
            for number, values in await self._studies.objectives_of(study.uid)
        ]
        numbers = (await asyncio.to_thread(front, losses))[:MAX_SHOWN_TRIALS]
        found = {trial.number: trial for trial in await self._studies.numbered(study.uid, numbers)}
        return [found[number] for number in numbers if number in found]


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
        experiment_parameters: str = "hyperParams",
    ) -> None:
        self._kind, self._studies, self._algorithms, self._now = kind, studies, algorithms, now
        self._wake, self._wake_removals = wake, wake_removals
        self._experiment_parameters = experiment_parameters

    async def stop(self, study: Study, *, at_once: bool) -> None:
        """Order the end of its trials, and its own after them or, `at_once`, now. 400 when it has ended."""
        if not await self._studies.request_stop(study.uid, self._now(), at_once=at_once):
            raise _already_ended(study)
        self._wake()

    async def restart(self, study: Study, budget: Budget) -> None:
        """Go on, with another budget if one is given; 409 while it runs, 400 when nothing would be left to do."""
        if not study.status.is_final:
            raise conflict(f"{WORDS[self._kind]} {study.name!r} is {study.status}", reason="IN_USE")
        request = _with_budget(study, budget)
        plan = await read_request(
            Fields("", request), self._algorithms, experiment_parameters=self._experiment_parameters
        )
        cut_off = study.counts.stopped
        if plan.max_trials is not None and study.counts.trials >= plan.max_trials and not cut_off:
            allowed = f"more than the {study.counts.trials} that it has run, or -1 for no limit"
            raise invalid("maxJobNum", plan.max_trials, allowed)
        if study.status is Status.FINISHED and study.is_exhausted and budget == Budget():
            raise invalid("maxJobNum", "", "a study with something left to try; this one has tried everything")
        if plan.max_seconds is not None and study.seconds(self._now()) >= plan.max_seconds:
            allowed = f"more minutes than the {study.seconds(self._now()) / 60:.1f} that it has run, or -1 for no limit"
            raise invalid("maxRunTime", plan.max_seconds / 60, allowed)
        study.request = request
        study.resume(self._now())
        await self._studies.resume(study, lambda: uuid4().hex)
        self._wake()

    async def delete(self, study: Study) -> None:
        """Take it out of sight, and order its trials and files removed; 409 while it runs."""
        await self._studies.delete(study.uid, self._now())
        self._wake_removals()

    async def delete_all(self, studies: Sequence[Study]) -> None:
        """The same for all of them; 409, and none is deleted, when one runs."""
        for study in studies:
            if not study.status.is_final:
                raise conflict(
                    f"{WORDS[self._kind]} {study.name!r} is {study.status}; stop it first",
                    reason="IN_USE",
                    metadata={"kind": WORDS[self._kind], "name": study.name, "status": str(study.status)},
                )
        for study in studies:
            await self.delete(study)


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
