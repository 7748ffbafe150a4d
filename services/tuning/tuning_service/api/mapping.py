"""Studies and trials as clients read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dlmesh.tuning.v1 import tuning_pb2
from servicekit.times import format_time

from tuning_service.domain.fields import Fields
from tuning_service.domain.parameters import user_defined
from tuning_service.domain.space import DataType, Value
from tuning_service.domain.study import Study, Trial
from tuning_service.usecases.algorithms import BUILD_IN, USER_PLUGIN
from tuning_service.usecases.ports import InstalledAlgorithm
from tuning_service.usecases.studies import StudyView

_TYPES = {str: str(DataType.STR), int: str(DataType.INT), float: str(DataType.DOUBLE)}


def hyper_search_detail(view: StudyView, now: datetime) -> tuning_pb2.HyperSearchDetail:
    """A search as it stands."""
    study = view.study
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
        algorithm=study.algorithm,
        objective_metric=study.objective_metric,
        objective=study.objective,
        instance_group_id=study.group_id,
        instance_group_name=study.group_name,
        ended_at=format_time(study.ended_at),
        warnings=study.warnings,
    )
    if view.best is not None:
        detail.best.CopyFrom(experiments(study, [view.best])[0])
    return detail


def experiments(study: Study, trials: Sequence[Trial]) -> list[tuning_pb2.Experiment]:
    """Trials of a study."""
    request = Fields("", study.request)
    searched = user_defined(request.objects("hyperParams"))
    # What is given may be 100,000 of them: only those of these trials are looked at.
    given = request.items("experiments")
    return [_experiment(trial, given, searched) for trial in trials]


def _experiment(trial: Trial, given: Sequence[Mapping[str, Any]], searched: frozenset[str]) -> tuning_pb2.Experiment:
    own, index = searched, trial.notes.get("experiment")
    if index is not None and index < len(given):
        experiment = Fields("", given[index])
        own = user_defined(experiment.objects("fixedHyperParams") or experiment.objects("hyperParams"))
    found = tuning_pb2.Experiment(
        id=trial.notes.get("id", trial.number),
        state=trial.status,
        parameters=[
            tuning_pb2.ChosenParameter(
                name=name, data_type=_type(value), fixed_value=as_text(value), user_defined=name in own
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
    return f"{study.counts.ended}/{'-' if study.most_trials is None else study.most_trials}"


def duration(seconds: float) -> str:
    """HH:MM:SS; more than two digits of hours when there are as many."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def as_text(value: Value) -> str:
    """A value as `fixedVal`: numbers in the shortest form that reads back the same."""
    return value if isinstance(value, str) else repr(value)


def _type(value: Value) -> str:
    """Values are of the type that the request says: whole numbers are int, others float."""
    return _TYPES[type(value)]
