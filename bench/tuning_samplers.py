"""One search of one task by one sampler, ours or a peer's: the losses of its trials in order."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tuning_service.algorithms.base import Evaluation, Problem, TrialState
from tuning_service.algorithms.registry import find, make_algorithm, read_settings
from tuning_service.domain.space import Dimension, Place
from tuning_tasks import Task

Search = Callable[[Task, int, int], list[float]]


def ours(name: str, settings: Mapping[str, str] | None = None) -> Search:
    """As studies of the platform run it, one trial after the other."""

    def search(task: Task, seed: int, trials: int) -> list[float]:
        found = find(name)
        assert found is not None
        problem = Problem(task.space, read_settings(found[1], settings or {}), seed, max_trials=trials)
        algorithm = make_algorithm(found[0], problem)
        history: list[Evaluation] = []
        losses: list[float] = []
        for number in range(1, trials + 1):
            answer = algorithm.ask(history, 1)
            if not answer.suggestions:
                break
            [suggestion] = answer.suggestions
            losses.append(task.loss(task.space.values(suggestion.place)))
            ended = Evaluation(number, suggestion.place, TrialState.FINISHED, (losses[-1],), suggestion.notes)
            history.append(ended)
        return losses

    return search


def optuna_tpe(task: Task, seed: int, trials: int) -> list[float]:
    """Optuna's TPESampler as it is when nothing is set."""
    import optuna

    return _by_optuna(task, optuna.samplers.TPESampler(seed=seed), trials)


def optuna_gp(task: Task, seed: int, trials: int) -> list[float]:
    """Optuna's GPSampler as it is when nothing is set."""
    import optuna

    return _by_optuna(task, optuna.samplers.GPSampler(seed=seed), trials)


def _by_optuna(task: Task, sampler: Any, trials: int) -> list[float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    study = optuna.create_study(sampler=sampler)
    distributions = {dimension.name: _distribution(dimension) for dimension in task.space.dimensions}
    losses = []
    for _ in range(trials):
        trial = study.ask(distributions)
        place = tuple(trial.params[dimension.name] for dimension in task.space.dimensions)
        losses.append(task.loss(task.space.values(place)))
        study.tell(trial, losses[-1])
    return losses


def _distribution(dimension: Dimension) -> Any:
    """Of coordinates, not of values: the same as native logarithmic and stepped ranges, and lists of numbers in order
    are searched as such, which natively would be categories."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.size is None:
        return FloatDistribution(0.0, 1.0)
    if dimension.is_ordered:
        return IntDistribution(0, dimension.size - 1)
    return CategoricalDistribution(list(range(dimension.size)))


def nevergrad_hyperopt(task: Task, seed: int, trials: int) -> list[float]:
    """nevergrad's way to hyperopt's TPE, its settings as they are."""
    import nevergrad

    return _by_nevergrad(task, nevergrad.optimizers.registry["HyperOpt"], seed, trials)


def nevergrad_gp(task: Task, seed: int, trials: int) -> list[float]:
    """nevergrad's Gaussian process with expected improvement and a Latin hypercube of ten to begin with."""
    import nevergrad

    made = nevergrad.families.ParametrizedBO(initialization="LHS", init_budget=10, utility_kind="ei")
    return _by_nevergrad(task, made, seed, trials)


def _by_nevergrad(task: Task, made: Any, seed: int, trials: int) -> list[float]:
    import nevergrad

    warnings.simplefilter("ignore")
    parameters = [
        nevergrad.p.Scalar(lower=0.0, upper=1.0) if dimension.is_ordered else nevergrad.p.Choice(range(dimension.size))
        for dimension in task.space.dimensions
    ]
    instrumentation = nevergrad.p.Instrumentation(*parameters)
    instrumentation.random_state.seed(seed)
    optimizer = made(instrumentation, budget=trials, num_workers=1)
    losses = []
    for _ in range(trials):
        asked = optimizer.ask()
        place: Place = tuple(
            coordinate
            if dimension.size is None or not dimension.is_ordered
            else min(dimension.size - 1, int(coordinate * dimension.size))
            for dimension, coordinate in zip(task.space.dimensions, asked.args, strict=True)
        )
        losses.append(task.loss(task.space.values(place)))
        optimizer.tell(asked, losses[-1])
    return losses


SAMPLERS: dict[str, Search] = {
    "Random": ours("Random"),
    "Tpe": ours("Tpe"),
    "Bayesian": ours("Bayesian"),
    "Optuna TPE": optuna_tpe,
    "Optuna GP": optuna_gp,
    "nevergrad HyperOpt": nevergrad_hyperopt,
    "nevergrad GP": nevergrad_gp,
}


def timed(sampler: str, task: Task, seed: int, trials: int) -> tuple[list[float], float]:
    """The losses, and the seconds that it took."""
    began = time.perf_counter()
    losses = SAMPLERS[sampler](task, seed, trials)
    return losses, time.perf_counter() - began
