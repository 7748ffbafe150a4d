"""Messages of trials to requests, trials to messages: both ways side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmesh.training.v1 import trials_pb2
from servicekit.trials import value_message, value_of

from training_service.domain.runs import Training
from training_service.usecases.prepare_trial import FIELD, PreparedTrial, TrialRequest
from training_service.usecases.read_trials import CurvesOfTrials, TrialCurves


def trial_request(message: trials_pb2.TrialSpec) -> TrialRequest:
    return TrialRequest(
        model_name=message.model_name,
        model_uid=message.model_uid,
        owner=message.owner,
        owner_is_administrator=message.owner_is_administrator,
        study=message.study,
        number=message.number,
        hyperparameters=_values(message.hyperparameters),
        user_defined=_values(message.user_defined),
        framework=message.framework,
        batch_size=message.batch_size,
        workers=message.workers,
        distribute=message.distribute if message.HasField("distribute") else None,
        gpus=message.gpus,
        sync_mode=message.sync_mode,
        weights=message.initial_weights,
        instance_group=message.instance_group,
        max_iterations=message.max_iterations,
        min_iterations=message.min_iterations,
        max_seconds=message.max_seconds,
    )


def candidates(message: trials_pb2.CheckTrialRequest) -> dict[str, Sequence[Any]]:
    return {
        name: [value_of(value, f"{FIELD}.{name}") for value in several.values]
        for name, several in message.candidates.items()
    }


def checked_trial(prepared: PreparedTrial) -> trials_pb2.CheckTrialResponse:
    training = prepared.training
    return trials_pb2.CheckTrialResponse(
        model_uid=training.model_uid,
        instance_group_id=training.group.id,
        instance_group=training.group.name,
        warnings=prepared.warnings,
    )


def curves_of_trials(message: trials_pb2.ReadTrialMetricsRequest) -> CurvesOfTrials:
    return CurvesOfTrials(tuple(message.series), message.only_these_series, message.wait_seconds, message.with_results)


def trial_metrics(found: TrialCurves) -> trials_pb2.TrialMetrics:
    return trials_pb2.TrialMetrics(
        trial_id=found.training.uid,
        is_settled=found.training.status.is_final,
        curves=[
            trials_pb2.TrialCurve(
                series=series, steps=[point.step for point in points], values=[point.value for point in points]
            )
            for series, points in found.curves.items()
        ],
        results=found.results.text,
        results_error=found.results.error,
        not_finite_series=found.training.not_finite_series,
    )


def trial_facts(training: Training) -> trials_pb2.GetTrialResponse:
    return trials_pb2.GetTrialResponse(
        hyperparameters=_messages(training.hyperparameter),
        batch_size=training.batch_size,
        user_defined=_messages(training.user_defined),
    )


def _values(messages: Mapping[str, trials_pb2.TrialValue]) -> dict[str, Any]:
    return {name: value_of(message, f"{FIELD}.{name}") for name, message in messages.items()}


def _messages(values: Mapping[str, Any]) -> dict[str, trials_pb2.TrialValue]:
    return {name: value_message(trials_pb2.TrialValue, value) for name, value in values.items()}
