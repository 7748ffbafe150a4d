"""Tunings of models as clients read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dlmesh.tuning.v1 import tuning_pb2
from google.protobuf.json_format import ParseDict
from servicekit.times import format_time

from tuning_service.api.mapping import duration, experiments, progress
from tuning_service.domain.study import Study, Trial
from tuning_service.usecases.studies import StudyView


def tuning_detail(view: StudyView, now: datetime) -> tuning_pb2.TuningDetail:
    """A tuning as it stands."""
    study = view.study
    shown = tuning_experiments(study, view.trials)
    best = tuning_experiments(study, [view.best])[0] if view.best else None
    return tuning_pb2.TuningDetail(
        input=_input(study),
        search=tuning_pb2.SearchProgress(
            experiments=shown,
            best=best,
            running=study.counts.open,
            complete=study.counts.finished,
            failed=study.counts.failed,
            progress=progress(study),
            duration=duration(study.seconds(now)),
            experiment_count=study.counts.trials,
        ),
        state=study.status,
        creator=study.owner,
        created_at=format_time(study.created_at),
        instance_group_id=study.group_id,
        instance_group_name=study.group_name,
        status_message=study.status_message,
        warnings=study.warnings,
    )


def tuning_experiments(study: Study, trials: Sequence[Trial]) -> list[tuning_pb2.TuningExperiment]:
    """Trials of a tuning."""
    return [_tuning_experiment(one) for one in experiments(study, trials)]


def _input(study: Study) -> tuning_pb2.TuningInput:
    tree: dict[str, Any] = {**study.request, "hpoName": study.name, "modelName": study.model_name}
    settings = {**tree.get("algoDef", {"algorithm": study.algorithm, "objective": study.objective})}
    if "maxRunTime" in settings:
        # Of a restart, which takes fractions.
        settings["maxRunTime"] = math.ceil(settings["maxRunTime"])
    return ParseDict({**tree, "algoDef": settings}, tuning_pb2.TuningInput(), ignore_unknown_fields=True)


def _tuning_experiment(one: tuning_pb2.Experiment) -> tuning_pb2.TuningExperiment:
    found = tuning_pb2.TuningExperiment(
        id=one.id,
        state=one.state,
        parameters=[
            tuning_pb2.SearchParameter(
                name=parameter.name,
                type="Fix",
                data_type=parameter.data_type,
                fixed_value=parameter.fixed_value,
                user_defined=parameter.user_defined,
            )
            for parameter in one.parameters
        ],
        application_id=one.application_id,
        driver_id=one.driver_id,
        started_at=one.started_at,
        ended_at=one.ended_at,
        metrics=one.metrics,
        status_message=one.status_message,
    )
    if one.HasField("metric_value"):
        found.metric_value = one.metric_value
    if one.HasField("max_iterations"):
        found.max_iterations = one.max_iterations
    return found
