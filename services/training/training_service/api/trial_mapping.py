"""Messages of trials to requests, trials to messages: both ways side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmesh.training.v1 import trials_pb2
from servicekit.errors import invalid

from training_service.usecases.prepare_trial import FIELD, PreparedTrial, TrialRequest
from training_service.usecases.read_trials import CurvesOfTrials, TrialCurves, TrialFacts


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
        priority=message.priority,
    )


def candidates(message: trials_pb2.CheckTrialRequest) -> dict[str, Sequence[Any]]:
    return {name: [_value(name, value) for value in several.values] for name, several in message.candidates.items()}


def checked_trial(prepared: PreparedTrial) -> trials_pb2.CheckTrialResponse:
    training = prepared.training
    return trials_pb2.CheckTrialResponse(
        model_uid=training.model_uid,
        model_owner=prepared.model_owner,
        dataset=training.dataset_name,
        instance_group_id=training.group.id,
        instance_group=training.group.name,
        framework=training.framework,
        accelerator=training.accelerator,
        ranks=training.most_workers,
        batch_size=training.batch_size,
        warnings=prepared.warnings,
        known_parameters=[
            trials_pb2.KnownParameter(
                name=known.name, data_type=known.data_type, allowed=known.allowed, words=known.words
            )
            for known in prepared.known
        ],
    )


def curves_of_trials(message: trials_pb2.ReadTrialMetricsRequest) -> CurvesOfTrials:
    return CurvesOfTrials(
        tuple(message.series), message.only_these_series, message.max_points, message.wait_seconds, message.with_results
    )


def trial_metrics(found: TrialCurves) -> trials_pb2.TrialMetrics:
    return trials_pb2.TrialMetrics(
        trial_id=found.training.uid,
        is_settled=found.training.status.is_final,
        status=str(found.training.status),
        status_message=found.training.status_message,
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


def trial_facts(facts: TrialFacts) -> trials_pb2.GetTrialResponse:
    training = facts.training
    return trials_pb2.GetTrialResponse(
        trial_id=training.uid,
        status=str(training.status),
        status_message=training.status_message,
        weights_folder=facts.weights_folder,
        weight_file=facts.weight_file,
        hyperparameters={name: _message(value) for name, value in training.hyperparameter.items()},
        batch_size=training.batch_size,
        user_defined={name: _message(value) for name, value in training.user_defined.items()},
        framework=training.framework,
        accelerator=training.accelerator,
    )


def _values(messages: Mapping[str, trials_pb2.TrialValue]) -> dict[str, Any]:
    return {name: _value(name, message) for name, message in messages.items()}


def _value(name: str, message: trials_pb2.TrialValue) -> Any:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid(f"{FIELD}.{name}", "", "a value; it has to be given")
    return getattr(message, kind)


def _message(value: Any) -> trials_pb2.TrialValue:
    kinds = {bool: "flag", int: "whole", float: "number", str: "text"}
    return trials_pb2.TrialValue(**{kinds[type(value)]: value})
