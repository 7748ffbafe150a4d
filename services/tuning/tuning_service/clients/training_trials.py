"""Trials as trainings of a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dlmesh.training.v1 import trials_pb2, trials_pb2_grpc
from servicekit.channels import Channels, call_from_loop, call_peer
from servicekit.errors import ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.trials import value_message, value_of

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import Plan
from tuning_service.domain.results import MetricRange, Results, read_results
from tuning_service.domain.space import Space, Value
from tuning_service.domain.study import Study, Trial
from tuning_service.domain.tuning import MAX_PROBED_VALUES, user_defined_names
from tuning_service.usecases.tunings import CheckedPlan, TrialModel

# Of each that is read there may be 100 series.
DELETE_AT_ONCE, READ_AT_ONCE = 1000, 10
# Long enough for what the workers of an ended training reported to be read.
SETTLE_SECONDS = 5.0
# What has been read after so long is saved before more is.
READ_SECONDS = 10.0


class TrainingTrials:
    """`usecases.ports.Runner` and `usecases.tunings.Trainings`."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("training", trials_pb2_grpc.TrainingTrialServiceStub)
        self._identity = Identity.service("tuning")

    async def check_plan(self, study: Study, plan: Plan) -> CheckedPlan:
        user_defined = user_defined_names(study.request)
        values, candidates = _probes(plan)
        message = trials_pb2.CheckTrialRequest(
            spec=_spec(study, values, user_defined),
            candidates={
                name: trials_pb2.TrialValues(values=map(_value, found))
                for name, found in candidates.items()
                if name not in user_defined
            },
        )
        with acting_as(self._identity):
            answer = await call_peer(lambda: self._stub.CheckTrial(message))
        return CheckedPlan(answer.model_uid, answer.instance_group_id, answer.instance_group, list(answer.warnings))

    async def start(self, study: Study, plan: Plan, trial: Trial, parent: Trial | None) -> None:
        # Every rung from the beginning: iterations count from there.
        spec = _spec(study, trial.values, user_defined_names(study.request))
        spec.number, spec.max_seconds = trial.number, plan.max_trial_seconds
        message = trials_pb2.StartTrialRequest(trial_id=trial.uid, spec=spec)
        await call_from_loop(lambda: self._stub.StartTrial(message))

    async def results(self, plan: Plan, trials: Sequence[Trial], *, have_ended: bool) -> Mapping[str, Results]:
        found = dict[str, Results]()
        uids, objectives = [trial.uid for trial in trials], [objective.metric for objective in plan.objectives]
        try:
            if have_ended:
                await self._take(found, plan, uids, series=objectives, with_results=True, is_settled=True)
            else:
                await self._take(found, plan, uids, series=objectives[:1], only_these_series=True)
                # The program may have a way of its own to say how it goes.
                silent = [uid for uid in uids if not found[uid].curve]
                await self._take(found, plan, silent, only_these_series=True, with_results=True)
        except ServiceError:
            # What is known counts, and the next call begins with the rest.
            if not found:
                raise
        return found

    async def _take(
        self, found: dict[str, Results], plan: Plan, uids: Sequence[str], *, is_settled: bool = False, **asked: Any
    ) -> None:
        """Add what is known of the trials to `found`, one answer after the other. When it has to be settled, that is
        waited for some time, and what was found after READ_SECONDS is all."""
        begun = time.monotonic()
        for start in range(0, len(uids), READ_AT_ONCE):
            unread = list(uids[start : start + READ_AT_ONCE])
            while unread:
                wait = max(0.0, begun + SETTLE_SECONDS - time.monotonic()) if is_settled else 0.0
                message = trials_pb2.ReadTrialMetricsRequest(trial_ids=unread, wait_seconds=wait, **asked)
                answer = await call_from_loop(
                    lambda message=message: self._stub.ReadTrialMetrics(message)  # type: ignore[misc]
                )
                for one in answer.trials:
                    if one.is_settled or not is_settled:
                        found[one.trial_id] = await asyncio.to_thread(_results, one, plan)
                # Of trainings that are gone nothing more will be known.
                for uid in {*unread} - {one.trial_id for one in answer.trials} - {*answer.unread_trial_ids}:
                    found[uid] = Results(complaint="its training was deleted")
                unread = list(answer.unread_trial_ids)
                if is_settled and found and time.monotonic() - begun >= READ_SECONDS:
                    return

    async def delete(self, uids: Sequence[str]) -> None:
        for start in range(0, len(uids), DELETE_AT_ONCE):
            message = trials_pb2.DeleteTrialsRequest(trial_ids=uids[start : start + DELETE_AT_ONCE])
            await call_from_loop(lambda message=message: self._stub.DeleteTrials(message))  # type: ignore[misc]

    async def model_of(self, trial: Trial) -> TrialModel:
        """What a model of this trial would be; 404 when it is gone."""
        message = trials_pb2.GetTrialRequest(trial_id=trial.uid)
        with acting_as(self._identity):
            answer = await call_peer(lambda: self._stub.GetTrial(message))
        return TrialModel(
            {name: value_of(value, name) for name, value in answer.hyperparameters.items()},
            answer.batch_size,
            {name: value_of(value, name) for name, value in answer.user_defined.items()},
        )


def _spec(study: Study, values: Mapping[str, Value], user_defined: frozenset[str]) -> trials_pb2.TrialSpec:
    resources = Fields("", study.request).object("resDef")
    spec = trials_pb2.TrialSpec(
        model_name=study.model_name,
        model_uid=study.model_uid,
        owner=study.owner,
        owner_is_administrator=study.owner_is_administrator,
        study=study.name,
        hyperparameters={name: _value(value) for name, value in values.items() if name not in user_defined},
        user_defined={name: _value(value) for name, value in values.items() if name in user_defined},
        framework=resources.text("framework", default=""),
        batch_size=resources.whole("batchsize") or 0,
        workers=resources.whole("workerNum") or 0,
        gpus=resources.whole("gpuNum") or 0,
        sync_mode=resources.text("syncMode", default=""),
        initial_weights=resources.text("initWeightPath", default=""),
        instance_group=study.group_id or resources.text("resourceInstanceId", default=""),
        max_iterations=resources.whole("maxiteration") or 0,
        min_iterations=resources.whole("miniteration") or 0,
    )
    if "distribute" in resources:
        spec.distribute = bool(resources.get("distribute")[1])
    return spec


def _probes(plan: Plan) -> tuple[dict[str, Value], dict[str, list[Value]]]:
    """One trial that there could be, and all other values whose kind has to be looked at: those of lists, and the ends
    of ranges."""
    if plan.experiments:
        _, parameters = plan.experiments[0]
        first: dict[str, Value] = {parameter.name: parameter.value for parameter in parameters}
        candidates: dict[str, list[Value]] = {}
        for _, others in plan.experiments[1:]:
            for parameter in others:
                candidates.setdefault(parameter.name, []).append(parameter.value)
        return first, candidates
    space: Space = plan.space
    first = space.values(tuple(0 for _ in space.dimensions))
    if plan.resource_name:
        first[plan.resource_name] = int(plan.settings["ResourceValue"])
    candidates = {}
    for dimension in space.dimensions:
        if dimension.size is None:
            candidates[dimension.name] = [dimension.value(1.0)]
        elif dimension.size > MAX_PROBED_VALUES:
            candidates[dimension.name] = [dimension.value(dimension.size - 1)]
        else:
            candidates[dimension.name] = [dimension.value(index) for index in range(1, dimension.size)]
    return first, candidates


def _results(trial: trials_pb2.TrialMetrics, plan: Plan) -> Results:
    curves = {curve.series: list(zip(curve.steps, curve.values, strict=True)) for curve in trial.curves if curve.steps}
    metrics = {
        name: MetricRange(min(values), max(values), points[-1][1])
        for name, points in curves.items()
        if (values := [value for _, value in points])
    }
    odd = [objective.metric for objective in plan.objectives if objective.metric in trial.not_finite_series]
    if odd:
        # What it had reached before says nothing of the weights that it ended with.
        return Results((), metrics, (), f"the newest {odd[0]} is not finite")
    missing = [objective.metric for objective in plan.objectives if objective.metric not in metrics]
    first = [(float(step), value) for step, value in curves.get(plan.objectives[0].metric, [])]
    if not missing:
        return Results(tuple(metrics[objective.metric].latest for objective in plan.objectives), metrics, first)
    if trial.results:
        # The program has a way of its own to say how it went.
        return read_results(trial.results, plan.objectives)
    if trial.results_error:
        return Results((), metrics, first, trial.results_error)
    known = ", ".join(sorted(metrics)[:10]) or "none"
    complaint = f"the training reported no {missing[0]}; what it reported: {known}"
    return Results((), metrics, first, complaint)


def _value(value: Value | bool) -> trials_pb2.TrialValue:
    return value_message(trials_pb2.TrialValue, value)
