"""What a study may know from earlier ones when it begins."""

from __future__ import annotations

from collections.abc import Sequence

from servicekit.errors import invalid
from servicekit.identity import current_identity

from tuning_service.domain.plan import Plan
from tuning_service.domain.study import Kind, Trial, TrialStatus
from tuning_service.usecases.ports import Studies, TrialPage

# Of each earlier study: the best, and the newest.
BEST, NEWEST = 300, 200
MOST = 1000

Finding = tuple[Sequence[float], Sequence[float]]


async def findings(plan: Plan, kind: Kind, model_uid: str, studies: Studies) -> list[Finding]:
    """Places and losses of the trials of the studies that the plan begins from, the best first; 400 unless they are
    there and the caller's to read.

    A trial counts if it has a value of every parameter that is searched here, in its range, and of every objective.
    """
    identity = current_identity()
    found: dict[Sequence[float], Sequence[float]] = {}
    for name in plan.warm_start:
        study = await studies.find(kind, model_uid, name)
        if study is None or not identity.may_access(study.owner):
            raise invalid("algoDef.warmStart", name, "names of studies of yours, of the same kind and model")
        finished = [TrialStatus.FINISHED]
        trials = [
            *await studies.page(study.uid, TrialPage(0, BEST, finished, by_loss=True), is_slim=True),
            *await studies.page(study.uid, TrialPage(0, NEWEST, finished, newest_first=True), is_slim=True),
        ]
        usable = [finding for trial in trials if (finding := _finding(trial, plan)) is not None]
        if not usable:
            allowed = "studies with finished trials in this space that have values of these objectives"
            raise invalid("algoDef.warmStart", name, allowed)
        found |= dict(usable)
    return sorted(found.items(), key=lambda finding: list(finding[1]))[:MOST]


def _finding(trial: Trial, plan: Plan) -> Finding | None:
    place = plan.space.place(trial.values)
    if place is None or not all(objective.metric in trial.metrics for objective in plan.objectives):
        return None
    return place, tuple(objective.loss(trial.metrics[objective.metric].latest) for objective in plan.objectives)
