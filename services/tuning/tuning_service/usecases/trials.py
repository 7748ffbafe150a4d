"""Between a study's table of trials and its algorithm: what the one shows, and what becomes of the other's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tuning_service.domain.evaluation import Answer, Evaluation, Known, Problem, Suggestion, TrialState
from tuning_service.domain.plan import Plan
from tuning_service.domain.space import Value
from tuning_service.domain.study import STOPPED_BY_RULE, Study, Trial, TrialStatus
from tuning_service.usecases.ports import Studies

# Trials that are held at once, however many a study has.
PAGE = 2_000


class TrialHistory:
    """`ports.History` of one study; `by_values` says where trials lie whose algorithm knows nothing of places. Values
    are left out unless it is asked for them."""

    def __init__(
        self, studies: Studies, study: Study, plan: Plan, *, by_values: bool = False, with_values: bool = False
    ) -> None:
        self._studies, self._study, self._plan, self._by_values = studies, study, plan, by_values
        self._with_values = with_values or by_values

    async def since(self, change: int) -> tuple[Sequence[Evaluation], int, bool]:
        trials, until, is_newest = await self._studies.changed(
            self._study.uid, change, PAGE, with_values=self._with_values
        )
        found = [evaluation_of(trial, self._plan) for trial in trials]
        return [self._placed(one) for one in found] if self._by_values else found, until, is_newest

    def _placed(self, trial: Evaluation) -> Evaluation:
        place = self._plan.space.place(trial.values or {})
        if place is None:
            # Somewhere off the grid, or of another space.
            return replace(trial, place=(), state=TrialState.FAILED, losses=None)
        return replace(trial, place=place)


def evaluation_of(trial: Trial, plan: Plan) -> Evaluation:
    """A trial as algorithms see it. One that was ended because it had no hope has FAILED with what it had reached; one
    that was ended for another reason has no value."""
    is_finished = trial.status is TrialStatus.FINISHED
    is_given_up = trial.status is TrialStatus.STOPPED and trial.stop_reason == STOPPED_BY_RULE
    losses = losses_of(trial, plan) if (is_finished or is_given_up) and trial.objectives else None
    state = TrialState.PENDING
    if trial.status.is_final:
        state = TrialState.FINISHED if is_finished and losses is not None else TrialState.FAILED
    return Evaluation(trial.number, trial.place or (), state, losses, trial.notes, trial.values)


def losses_of(trial: Trial, plan: Plan) -> tuple[float, ...]:
    """The trial's objectives, the less the better."""
    return tuple(objective.loss(value) for objective, value in zip(plan.objectives, trial.objectives, strict=True))


def problem_of(study: Study, plan: Plan) -> Problem:
    """The study as its algorithm knows it."""
    settings = dict(plan.settings)
    if plan.experiments:
        settings["experiments"] = len(plan.experiments)
    known = tuple(Known(tuple(place), tuple(losses)) for place, losses in study.known)
    return Problem(plan.space, settings, study.seed, len(plan.objectives), plan.max_trials, plan.parallel, known)


def made_trials(study: Study, plan: Plan, answer: Answer, make_uid: Callable[[], str]) -> list[Trial]:
    """The trials to add for an answer, numbered from the study's last one on."""
    first = study.counts.trials + 1
    return [
        Trial(
            study_uid=study.uid,
            number=first + index,
            uid=make_uid(),
            values=_values(plan, suggestion),
            place=suggestion.place,
            notes=_notes(plan, suggestion),
        )
        for index, suggestion in enumerate(answer.suggestions)
    ]


def given_trials(study: Study, plan: Plan, count: int, make_uid: Callable[[], str]) -> list[Trial]:
    """The next trials of those that are to be tried first: the user's, then the best of an earlier study. None when all
    of them are."""
    first = study.counts.trials
    points = [*plan.start_points, *(plan.space.values(tuple(place)) for place, _ in study.known[:1])]
    fixed = {parameter.name: parameter.value for parameter in plan.space.fixed}
    if plan.resource_name:
        # Known to be good: on all of it.
        fixed[plan.resource_name] = int(plan.settings["ResourceValue"])
    return [
        Trial(
            study_uid=study.uid,
            number=first + index + 1,
            uid=make_uid(),
            values=values | fixed,
            place=plan.space.place(values),
        )
        for index, values in enumerate(map(dict, points[first : first + count]))
    ]


def _notes(plan: Plan, suggestion: Suggestion) -> dict[str, Any]:
    """The algorithm's, and the user's own id of an experiment."""
    notes = dict(suggestion.notes)
    return {**notes, "id": plan.experiments[int(notes["experiment"])][0]} if plan.experiments else notes


def _values(plan: Plan, suggestion: Suggestion) -> dict[str, Value]:
    if plan.experiments:
        _, parameters = plan.experiments[int(suggestion.notes["experiment"])]
        return {parameter.name: parameter.value for parameter in parameters}
    if suggestion.values is not None:
        fixed = {parameter.name: parameter.value for parameter in plan.space.fixed}
        return fixed | dict(suggestion.values)
    values = plan.space.values(suggestion.place)
    if plan.resource_name:
        values[plan.resource_name] = suggestion.notes["resource"]
    return values
