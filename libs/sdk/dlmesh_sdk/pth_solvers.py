"""Torch optimizers and learning rate schedulers by the names that hyperparameters use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

Values = Mapping[str, Any]
Scheduler = lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau

DEFAULT_LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Recipe:
    """How to build one torch optimizer: which hyperparameter feeds which argument; the defaults are torch's."""

    optimizer: type[Optimizer]
    arguments: Mapping[str, str]
    has_betas: bool = False


_SGD = {"momentum": "momentum", "weight_decay": "weightdecay", "dampening": "dampening", "nesterov": "nesterov"}
_DECAY_EPS = {"weight_decay": "weightdecay", "eps": "epsilon"}
_OPTIMIZERS = {
    "SGD": Recipe(torch.optim.SGD, _SGD),
    "Adam": Recipe(torch.optim.Adam, _DECAY_EPS | {"amsgrad": "amsgrad"}, has_betas=True),
    "Adagrad": Recipe(
        torch.optim.Adagrad, _DECAY_EPS | {"lr_decay": "lr_decay", "initial_accumulator_value": "accumulator"}
    ),
    "Adadelta": Recipe(torch.optim.Adadelta, _DECAY_EPS | {"rho": "rho"}),
    "RMSProp": Recipe(
        torch.optim.RMSprop, _DECAY_EPS | {"alpha": "alpha", "momentum": "momentum", "centered": "centered"}
    ),
    "ASGD": Recipe(torch.optim.ASGD, {"weight_decay": "weightdecay", "lambd": "lambd", "alpha": "alpha", "t0": "t0"}),
    "SparseAdam": Recipe(torch.optim.SparseAdam, {"eps": "epsilon"}, has_betas=True),
    "Adamax": Recipe(torch.optim.Adamax, _DECAY_EPS, has_betas=True),
    "Rprop": Recipe(torch.optim.Rprop, {}),
}
_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps")
_POLICIES = ("fixed", "step", "multistep", "exponential", "cosineannealing", "reducelronplateau")
# What cannot be 0: there it means "not given".
_NEVER_ZERO = {"learningrate", "stepsize", "gamma", "t_max"}


def build_optimizer(parameters: Iterable[torch.nn.Parameter], hyperparameters: Values) -> Optimizer:
    """The optimizer that `solvertype` names (SGD when it is absent); ValueError lists the known ones."""
    name = str(hyperparameters.get("solvertype") or "SGD")
    recipe = {known.lower(): recipe for known, recipe in _OPTIMIZERS.items()}.get(name.lower())
    if recipe is None:
        raise ValueError(f"solvertype: {name!r} is not built for PyTorch; allowed: {', '.join(_OPTIMIZERS)}")
    given = _given(hyperparameters)
    arguments = {argument: given[key] for argument, key in recipe.arguments.items() if key in given}
    if recipe.has_betas:
        arguments["betas"] = (given.get("beta1", 0.9), given.get("beta2", 0.999))
    learning_rate = given.get("learningrate", DEFAULT_LEARNING_RATE)
    return recipe.optimizer(parameters, lr=learning_rate, **arguments)  # type: ignore[call-arg]


def build_scheduler(optimizer: Optimizer, hyperparameters: Values, epochs: int) -> Scheduler | None:
    """The scheduler that `lrpolicy` names, counted in epochs; None for `fixed`. ValueError lists the known policies."""
    given = _given(hyperparameters)
    policy = str(given.get("lrpolicy", "fixed")).lower()
    gamma = given.get("gamma", 0.1)
    if policy == "fixed":
        return None
    if policy == "step":
        return lr_scheduler.StepLR(optimizer, given.get("stepsize", 1), gamma)
    if policy == "multistep":
        milestones = [int(value) for value in str(given.get("stepvalues", "")).split(",") if value.strip()]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    if policy == "exponential":
        return lr_scheduler.ExponentialLR(optimizer, given.get("gamma", 0.95))
    if policy == "cosineannealing":
        return lr_scheduler.CosineAnnealingLR(optimizer, given.get("t_max", epochs), given.get("eta_min", 0.0))
    if policy == "reducelronplateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, **{name: given[name] for name in _PLATEAU if name in given})
    raise ValueError(f"lrpolicy: {policy!r} is not built for PyTorch; allowed: {', '.join(_POLICIES)}")


def _given(hyperparameters: Values) -> dict[str, Any]:
    return {
        name: value
        for name, value in hyperparameters.items()
        if value not in ("", None) and not (value == 0 and name in _NEVER_ZERO)
    }
