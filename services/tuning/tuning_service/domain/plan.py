"""What a study is to do: the request, read and complete. Read anew from the stored request whenever it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from servicekit.errors import invalid
from servicekit.names import check_name

from tuning_service.domain.fields import Fields, shown
from tuning_service.domain.parameters import as_value, read_experiments, read_space
from tuning_service.domain.space import Fixed, Space, Value

MAX_TRIALS = 100_000
MAX_PARALLEL = 1000
MAX_MINUTES = 10 * 366 * 24 * 60
MAX_OBJECTIVES = 8
MAX_METRIC = 256
MAX_WARM_STARTS = 20
MAX_START_POINTS = 1000
# A program that fails so often and never succeeded has a defect: more trials would not find it. Where many run at a
# time it takes twice their number: what fails ends sooner than what succeeds.
HOPELESS_FAILURES = 20

_DIRECTIONS = {"minimize": "minimize", "maximize": "maximize", "minimise": "minimize", "maximise": "maximize"}
_KEPT = {**_DIRECTIONS, "latest": "latest"}


@dataclass(frozen=True)
class Objective:
    """A metric that is optimised."""

    metric: str
    maximize: bool

    def loss(self, value: float) -> float:
        """The less the better."""
        return -value if self.maximize else value


@dataclass(frozen=True)
class MedianRule:
    """Ends a trial whose best value so far is worse than the median of the finished ones' values at the same step.

    It looks at trials that have come to `min_steps`, once `min_trials` have finished that came as far.
    """

    min_steps: int = 1
    min_trials: int = 5


class AlgorithmFacts(Protocol):
    """What has to be known of an algorithm to read what is asked of it."""

    @property
    def name(self) -> str: ...
    @property
    def takes_experiments(self) -> bool: ...
    @property
    def needs_resource(self) -> bool: ...
    @property
    def max_objectives(self) -> int: ...
    @property
    def takes_start_points(self) -> bool: ...
    @property
    def takes_warm_start(self) -> bool: ...

    def read_settings(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        """`algoParams`, typed and complete; 400."""


@dataclass(frozen=True)
class Plan:
    """A study's request. Limits that are None do not hold; `max_seconds` is of the whole study, `max_trial_seconds` of
    one trial's run. `experiments` are id and parameters of the trials that were given instead of a space.
    `resource_name` is the parameter that the algorithm sets itself, empty when there is none."""

    space: Space
    experiments: Sequence[tuple[int, tuple[Fixed, ...]]]
    algorithm: str
    settings: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    resource_name: str = ""
    parallel: int = 1
    max_trials: int | None = None
    max_seconds: float | None = None
    max_trial_seconds: float = 0.0
    max_failures: int | None = None
    goal: float | None = None
    patience: int | None = None
    median_rule: MedianRule | None = None
    warm_start: Sequence[str] = ()
    start_points: Sequence[Mapping[str, Value]] = ()


def algorithm_name(tree: Fields) -> str:
    """Which algorithm is asked for."""
    return tree.object("algoDef", required=True).text("algorithm")


def algorithm_parameters(tree: Fields, *, with_hyperband_eta: bool = True) -> dict[str, str]:
    """`algoParams` as they came, by name; older clients write eta beside them, and say it to every algorithm."""
    algorithm = tree.object("algoDef")
    found: dict[str, str] = {}
    for parameter in algorithm.objects("algoParams"):
        name = parameter.text("name")
        _, value = parameter.get("value")
        if value is None or isinstance(value, list | dict):
            raise invalid(parameter.place("value"), shown(value or ""), "a text; it has to be given")
        if name in found:
            raise invalid(parameter.place("name"), name, "a name that no other entry has")
        found[name] = str(value)
    eta = algorithm.number("hyperbandEta")
    if with_hyperband_eta and eta and not any(name.lower() == "eta" for name in found):
        found["eta"] = str(eta)
    return found


def read_plan(tree: Fields, algorithm: AlgorithmFacts, experiment_parameters: str) -> Plan:
    """The whole request but for what runs; 400 naming what is wrong."""
    settings_tree = tree.object("algoDef")
    settings = algorithm.read_settings(algorithm_parameters(tree, with_hyperband_eta=algorithm.needs_resource))
    has_parameters, has_experiments = bool(tree.items("hyperParams")), bool(tree.items("experiments"))
    if has_parameters and has_experiments:
        raise invalid("experiments", "given beside hyperParams", "one of hyperParams and experiments")
    if algorithm.takes_experiments and not has_experiments:
        raise invalid("experiments", "", f"at least one experiment, which is what {algorithm.name} runs")
    if not algorithm.takes_experiments and not has_parameters:
        allowed = "at least one parameter"
        if has_experiments:
            allowed += f", which {algorithm.name} searches; experiments are for ExperimentGridSearch"
        raise invalid("hyperParams", "", allowed)
    # What a plug-in calls so is its own.
    resource = str(settings["ResourceName"]) if algorithm.needs_resource else ""
    space = read_space(tree, resource=resource)
    _check_additional(settings_tree)
    experiments = read_experiments(tree, experiment_parameters) if has_experiments else []
    least = int(settings.get("MinResource") or 1) if resource else 0
    if resource and int(settings["ResourceValue"]) < least:
        raise invalid("algoParams.ResourceValue", settings["ResourceValue"], f"at least {least}, the MinResource")
    return _with_limits(
        settings_tree,
        Plan(
            space=space,
            experiments=experiments,
            algorithm=algorithm.name,
            settings=settings,
            objectives=_objectives(settings_tree, algorithm),
            resource_name=resource,
            warm_start=_warm_start(settings_tree, algorithm),
            start_points=_start_points(settings_tree, space, algorithm),
        ),
    )


def outline(tree: Fields, plan: Plan) -> dict[str, Any]:
    """What people look for in a request, by the names that fields of a study have."""
    return {
        # As it was written.
        "algorithm": algorithm_name(tree),
        "objective_metric": plan.objectives[0].metric,
        "objective": "Maximize" if plan.objectives[0].maximize else "Minimize",
        "most_trials": len(plan.experiments) or None if plan.max_trials is None else plan.max_trials,
    }


def _with_limits(tree: Fields, plan: Plan) -> Plan:
    minutes = tree.number("maxRunTime")
    if minutes is not None and minutes not in (0, -1) and not 0 < minutes <= MAX_MINUTES:
        raise invalid(tree.place("maxRunTime"), minutes, f"minutes, up to {MAX_MINUTES}, or -1 for no limit")
    trial_minutes = tree.number("maxTrialMinutes")
    if trial_minutes is not None and trial_minutes not in (0, -1) and not 0 < trial_minutes <= MAX_MINUTES:
        raise invalid(tree.place("maxTrialMinutes"), trial_minutes, f"minutes, up to {MAX_MINUTES}, or -1 for no limit")
    median = None
    if "earlyStopping" in tree:
        rule = tree.object("earlyStopping")
        rule.word("rule", {"median": "median"}, default="median")
        median = MedianRule(rule.within(1, 2**31 - 1, 1, "minSteps"), rule.within(1, MAX_TRIALS, 5, "minTrials"))
    return Plan(
        **{
            **plan.__dict__,
            "parallel": tree.within(1, MAX_PARALLEL, 1, "maxParalleJobNum", "maxParalleJob"),
            "max_trials": tree.limit("maxJobNum", most=MAX_TRIALS),
            "max_seconds": minutes * 60 if minutes is not None and minutes > 0 else None,
            "max_trial_seconds": trial_minutes * 60 if trial_minutes is not None and trial_minutes > 0 else 0.0,
            "max_failures": tree.limit("maxFailedTrials", most=MAX_TRIALS),
            "goal": tree.number("goal"),
            "patience": tree.limit("patience", most=MAX_TRIALS),
            "median_rule": median,
        }
    )


def _objectives(tree: Fields, algorithm: AlgorithmFacts) -> tuple[Objective, ...]:
    first = Objective(_metric(tree, "objectiveMetric"), tree.word("objective", _DIRECTIONS) == "maximize")
    found = [first]
    for other in tree.objects("objectives"):
        metric = _metric(other, "metric", "objectiveMetric")
        if metric in {one.metric for one in found}:
            raise invalid(other.place("metric"), metric, "a metric that is no objective yet")
        found.append(Objective(metric, other.word("objective", _DIRECTIONS) == "maximize"))
    most = min(MAX_OBJECTIVES, algorithm.max_objectives)
    if len(found) > most:
        allowed = f"at most {most} objectives in all with {algorithm.name}"
        raise invalid(tree.place("objectives"), f"{len(found) - 1} more than objectiveMetric", allowed)
    return tuple(found)


def _metric(tree: Fields, *names: str) -> str:
    metric = tree.text(*names)
    if len(metric) > MAX_METRIC:
        raise invalid(tree.place(names[0]), shown(metric), f"a name of at most {MAX_METRIC} characters")
    return metric


def _check_additional(tree: Fields) -> None:
    """They change nothing: every metric is kept."""
    metrics = tree.object("additionalMetrics")
    for name, _ in metrics:
        metrics.word(name, _KEPT)


def _warm_start(tree: Fields, algorithm: AlgorithmFacts) -> list[str]:
    if tree.items("warmStart") and not algorithm.takes_warm_start:
        raise invalid(tree.place("warmStart"), f"{len(tree.items('warmStart'))} names", f"none with {algorithm.name}")
    names = list(dict.fromkeys(str(name) for name in tree.items("warmStart")))
    if len(names) > MAX_WARM_STARTS:
        raise invalid(tree.place("warmStart"), f"{len(names)} names", f"at most {MAX_WARM_STARTS}")
    for name in names:
        check_name(tree.place("warmStart"), name)
    return names


def _start_points(tree: Fields, space: Space, algorithm: AlgorithmFacts) -> list[Mapping[str, Value]]:
    """Trials to begin with, each with a value of every parameter that is searched."""
    points = tree.objects("startPoints")
    if points and not algorithm.takes_start_points:
        raise invalid(tree.place("startPoints"), f"{len(points)} points", f"none with {algorithm.name}")
    if len(points) > MAX_START_POINTS:
        raise invalid(tree.place("startPoints"), f"{len(points)} points", f"at most {MAX_START_POINTS}")
    by_name = {dimension.name: dimension for dimension in space.dimensions}
    found: list[Mapping[str, Value]] = []
    for point in points:
        values: dict[str, Value] = {}
        for name, given in point:
            if name not in by_name:
                raise invalid(point.place(name), shown(given), f"values of {', '.join(by_name) or 'no parameter'}")
            value = as_value(point.place(name), given, by_name[name].data_type)
            if by_name[name].coordinate(value) is None:
                raise invalid(point.place(name), shown(given), "a value of the search space")
            values[name] = value
        missing = sorted(set(by_name) - set(values))
        if missing:
            raise invalid(point.place(missing[0]), "", "a value of the search space; it has to be given")
        found.append(values)
    return found
