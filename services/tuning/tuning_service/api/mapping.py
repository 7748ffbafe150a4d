"""Studies and trials as clients read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dlmesh.tuning.v1 import tuning_pb2
from servicekit.times import format_time

from tuning_service.domain.fields import Fields, as_whole
from tuning_service.domain.parameters import data_types
from tuning_service.domain.space import DataType, Value
from tuning_service.domain.study import Study, Trial
from tuning_service.usecases.algorithms import BUILD_IN, USER_PLUGIN
from tuning_service.usecases.ports import InstalledAlgorithm
from tuning_service.usecases.studies import StudyView


def hyper_search_detail(view: StudyView, now: datetime) -> tuning_pb2.HyperSearchDetail:
    """A search as it stands."""
    study = view.study
    settings = Fields("", study.request).object("algoDef")
    detail = tuning_pb2.HyperSearchDetail(
        name=study.name,
        state=study.status,
        progress=progress(study),
        duration=duration(study.seconds(now)),
        creator=study.owner,
        created_at=format_time(study.created_at),
        experiments=experiments(study, view.trials),
        running=study.counts.open,
        complete=study.counts.finished,
        failed=study.counts.failed,
        status_message=study.status_message,
        experiment_count=study.counts.trials,
        algorithm=settings.text("algorithm"),
        objective_metric=settings.text("objectiveMetric"),
        objective=settings.text("objective").capitalize(),
        instance_group_id=study.group_id,
        instance_group_name=study.group_name,
        ended_at=format_time(study.ended_at),
    )
    if view.best is not None:
        detail.best.CopyFrom(experiments(study, [view.best])[0])
    return detail


def experiments(study: Study, trials: Sequence[Trial]) -> list[tuning_pb2.Experiment]:
    """Trials of a study."""
    types = data_types(study.request)
    given = Fields("", study.request).items("experiments")
    return [_experiment(trial, types, given) for trial in trials]


def _experiment(
    trial: Trial, types: Mapping[str, DataType], given: Sequence[Mapping[str, Any]]
) -> tuning_pb2.Experiment:
    index = trial.notes.get("experiment")
    found = tuning_pb2.Experiment(
        # The user's own id of it, where there is one.
        id=trial.number if index is None else as_whole("id", given[index]["id"]),
        state=trial.status,
        parameters=[
            tuning_pb2.ChosenParameter(
                name=name,
                data_type=str(types.get(name, _type(value))),
                fixed_value=as_text(value),
                user_defined=name not in types,
            )
            for name, value in trial.values.items()
        ],
        application_id=trial.uid,
        driver_id=trial.driver_id,
        started_at=format_time(trial.started_at),
        ended_at=format_time(trial.ended_at),
        metrics=[
            tuning_pb2.ExperimentMetric(name=name, min=one.minimum, max=one.maximum, latest=one.latest)
            for name, one in trial.metrics.items()
        ],
        status_message=trial.message,
    )
    if trial.objectives:
        found.metric_value = trial.objectives[0]
    if (resource := trial.notes.get("resource")) is not None:
        found.max_iterations = int(resource)
    return found


def algorithm_detail(algorithm: str | InstalledAlgorithm) -> tuning_pb2.AlgorithmDetail:
    """A built-in algorithm, by its name, or an installed one."""
    if isinstance(algorithm, str):
        # What recordings of the original have of them.
        return tuning_pb2.AlgorithmDetail(name=algorithm, type=BUILD_IN, remote_execution=False)
    return tuning_pb2.AlgorithmDetail(
        name=algorithm.name,
        path=algorithm.path,
        conda_home=algorithm.conda_home,
        conda_environment=algorithm.conda_environment,
        created_at=format_time(algorithm.created_at),
        type=USER_PLUGIN,
        remote_execution=algorithm.remote_execution,
        log_level=algorithm.log_level,
        creator=algorithm.creator,
    )


def progress(study: Study) -> str:
    """Trials that ended, of those there may be."""
    settings = Fields("", study.request).object("algoDef")
    most = settings.whole("maxJobNum")
    given = Fields("", study.request).items("experiments")
    if most in (None, 0, -1):
        most = len(given) or None
    return f"{study.counts.ended}/{'-' if most is None else most}"


def duration(seconds: float) -> str:
    """HH:MM:SS; more than two digits of hours when there are as many."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def as_text(value: Value) -> str:
    """A value as `fixedVal`: numbers in the shortest form that reads back the same."""
    return value if isinstance(value, str) else repr(value)


def _type(value: Value) -> DataType:
    if isinstance(value, str):
        return DataType.STR
    return DataType.INT if isinstance(value, int) else DataType.DOUBLE
