"""When a study is over, and when a trial has no hope."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime

from tuning_service.domain.plan import HOPELESS_FAILURES, MedianRule, Objective, Plan
from tuning_service.domain.study import Status, Study


def reason_to_end(study: Study, plan: Plan, now: datetime) -> str:
    """Why no new trial of a study is to be started; empty when more are. What runs may end, but for `is_over_time`."""
    counts = study.counts
    if is_over_time(study, plan, now):
        assert plan.max_seconds is not None
        return f"maxRunTime, {plan.max_seconds / 60:g} minutes, is over"
    if plan.goal is not None and study.best_loss is not None and study.best_loss <= plan.objectives[0].loss(plan.goal):
        return f"{plan.objectives[0].metric} reached the goal, {plan.goal:g}"
    if plan.patience is not None and counts.ended - study.improved_at >= plan.patience and study.best:
        return f"{plan.patience} trials brought nothing better"
    if plan.max_failures is not None and counts.failed >= plan.max_failures:
        return f"{counts.failed} trials failed, maxFailedTrials is {plan.max_failures}"
    if not counts.finished and counts.failed >= max(HOPELESS_FAILURES, 2 * plan.parallel):
        return f"the first {counts.failed} trials failed, all of them"
    if plan.max_trials is not None and counts.trials >= plan.max_trials:
        return "maxJobNum is reached"
    if study.is_exhausted:
        return "there is nothing left to try"
    return ""


def is_over_time(study: Study, plan: Plan, now: datetime) -> bool:
    """True when also the trials that run have to end."""
    return plan.max_seconds is not None and study.seconds(now) >= plan.max_seconds


def outcome(study: Study, reason: str) -> tuple[Status, str]:
    """How a study ends that nothing more is done for."""
    counts = study.counts
    if study.stop_requested:
        return Status.STOPPED, "stopped"
    if not counts.finished:
        failed = f"no trial ended with a value ({counts.failed} failed, {counts.stopped} were stopped)"
        return Status.FAILED, f"{failed}: {reason}"
    return Status.FINISHED, reason


def is_hopeless(
    rule: MedianRule,
    objective: Objective,
    curve: Sequence[tuple[float, float]],
    others: Sequence[Sequence[tuple[float, float]]],
) -> bool:
    """Whether a trial's best value so far is worse than the median of what finished trials had at its step.

    `curve` is step and value of the trial; `others` are those of finished ones. At least `rule.min_trials` of them have
    to have come as far. It is the rule of Optuna's MedianPruner; Vizier's takes the mean of all values up to the step
    instead, which is so high where losses fall that hardly any trial is ever worse.
    """
    if not curve or curve[-1][0] < rule.min_steps or len(others) < rule.min_trials:
        return False
    best = min(objective.loss(value) for _, value in curve)
    found = [value for other in others if (value := _value_at(other, curve[-1][0])) is not None]
    return len(found) >= rule.min_trials and best > statistics.median(map(objective.loss, found))


def _value_at(curve: Sequence[tuple[float, float]], step: float) -> float | None:
    """The newest value at `step`, or before it where none is kept of it; None when the trial did not come so far."""
    if all(at < step for at, _ in curve):
        return None
    before = [(at, value) for at, value in reversed(curve) if at <= step]
    return max(before, key=lambda point: point[0])[1] if before else None
