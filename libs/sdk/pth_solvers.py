"""Torch optimizers and learning rate schedulers by the names that hyperparameters use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

Values = Mapping[str, Any]
Builder = Callable[[Iterable[torch.nn.Parameter], float, float, Values], Optimizer]

DEFAULT_LEARNING_RATE = 0.01
DEFAULT_MOMENTUM = 0.9

# Each takes (parameters, learning rate, weight decay, hyperparameters); keys are compared without case.
_OPTIMIZERS: dict[str, Builder] = {
    "SGD": lambda p, lr, wd, h: torch.optim.SGD(p, lr, momentum=number(h, "momentum", 0.0), weight_decay=wd),
    "Momentum": lambda p, lr, wd, h: torch.optim.SGD(p, lr, momentum=_momentum(h), weight_decay=wd),
    "Nesterov": lambda p, lr, wd, h: torch.optim.SGD(p, lr, momentum=_momentum(h), weight_decay=wd, nesterov=True),
    "Adam": lambda p, lr, wd, h: torch.optim.Adam(p, lr, eps=number(h, "epsilon", 1e-8), weight_decay=wd),
    "AdaGrad": lambda p, lr, wd, h: torch.optim.Adagrad(p, lr, eps=number(h, "epsilon", 1e-10), weight_decay=wd),
    "AdaDelta": lambda p, lr, wd, h: torch.optim.Adadelta(p, lr, eps=number(h, "epsilon", 1e-6), weight_decay=wd),
    "RMSProp": lambda p, lr, wd, h: torch.optim.RMSprop(
        p, lr, eps=number(h, "epsilon", 1e-8), momentum=number(h, "momentum", 0.0), weight_decay=wd
    ),
    "ASGD": lambda p, lr, wd, h: torch.optim.ASGD(p, lr, weight_decay=wd),
    "Adamax": lambda p, lr, wd, h: torch.optim.Adamax(p, lr, eps=number(h, "epsilon", 1e-8), weight_decay=wd),
    "Rprop": lambda p, lr, wd, h: torch.optim.Rprop(p, lr),
}
_POLICIES = ("fixed", "step", "multistep", "exponential", "cosineannealing", "reducelronplateau")


def build_optimizer(parameters: Iterable[torch.nn.Parameter], hyperparameters: Values) -> Optimizer:
    """The optimizer that `solvertype` names (SGD when it is absent); ValueError lists the known ones."""
    name = str(hyperparameters.get("solvertype") or "SGD")
    builders = {known.lower(): builder for known, builder in _OPTIMIZERS.items()}
    builder = builders.get(name.lower())
    if builder is None:
        raise ValueError(f"solvertype: {name!r} is not built for PyTorch; allowed: {', '.join(_OPTIMIZERS)}")
    learning_rate = number(hyperparameters, "learningrate", DEFAULT_LEARNING_RATE)
    return builder(parameters, learning_rate, number(hyperparameters, "weightdecay", 0.0), hyperparameters)


def build_scheduler(
    optimizer: Optimizer, hyperparameters: Values, epochs: int
) -> lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau | None:
    """The scheduler that `lrpolicy` names, counted in epochs; None for `fixed`. ValueError lists the known policies."""
    policy = str(hyperparameters.get("lrpolicy") or "fixed").lower()
    gamma = number(hyperparameters, "gamma", 0.1)
    if policy == "fixed":
        return None
    if policy == "step":
        return lr_scheduler.StepLR(optimizer, max(1, int(number(hyperparameters, "stepsize", 1))), gamma)
    if policy == "multistep":
        milestones = [int(value) for value in str(hyperparameters.get("stepvalues") or "").split(",") if value.strip()]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    if policy == "exponential":
        return lr_scheduler.ExponentialLR(optimizer, number(hyperparameters, "gamma", 0.95))
    if policy == "cosineannealing":
        return lr_scheduler.CosineAnnealingLR(optimizer, max(1, int(number(hyperparameters, "stepsize", epochs))))
    if policy == "reducelronplateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=gamma, patience=max(1, int(number(hyperparameters, "stepsize", 10)))
        )
    raise ValueError(f"lrpolicy: {policy!r} is not built for PyTorch; allowed: {', '.join(_POLICIES)}")


def number(hyperparameters: Values, key: str, default: float) -> float:
    """A hyperparameter as a float; absent, empty and zero mean the default (REST bodies send 0 for unset)."""
    return float(hyperparameters.get(key) or default)


def _momentum(hyperparameters: Values) -> float:
    return number(hyperparameters, "momentum", DEFAULT_MOMENTUM)
