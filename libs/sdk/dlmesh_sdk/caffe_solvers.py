"""Caffe's solvers and learning rate policies, by the names that solver.prototxt uses.

Settings are a mapping of the fields of solver.prototxt: type, base_lr, momentum, weight_decay, regularization_type,
lr_policy, gamma, power, stepsize, stepvalue (a list), max_iter, delta, momentum2, rms_decay, clip_gradients, iter_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Settings = Mapping[str, Any]
# A group's settings, the state of a parameter, its gradient with regularization, the rate: the new update.
Rule = Callable[[dict[str, Any], dict[str, Any], Tensor, float], Tensor]

_DEFAULTS = {
    "base_lr": 0.01,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "regularization_type": "L2",
    "delta": 1e-8,
    "momentum2": 0.999,
    "rms_decay": 0.99,
    "clip_gradients": -1.0,
    "iter_size": 1,
}


def learning_rate(settings: Settings, iteration: int) -> float:
    """The rate of `iteration`, counted from 0; ValueError names an unknown policy or what a policy lacks."""
    base, policy = float(settings["base_lr"]), str(settings.get("lr_policy") or "fixed")
    if policy not in _POLICIES:
        raise ValueError(f"lr_policy: {policy!r} is not known; allowed: {', '.join(_POLICIES)}")
    needed, rate = _POLICIES[policy]
    for field in needed:
        # A power of 0 is a power.
        if not settings.get(field) and (field != "power" or settings.get(field) is None):
            raise ValueError(f"lr_policy {policy!r} needs {field}")
    return base * rate(settings, iteration)


def build_optimizer(groups: Sequence[Mapping[str, Any]], settings: Settings) -> CaffeSolver:
    """The solver that `type` names (SGD when it is absent); ValueError lists the known ones.

    `groups` hold `params`, `lr_mult` and `decay_mult`. The rate of an iteration is put into each group's `lr` before
    `step`; gradients are the sums over `iter_size` batches.
    """
    name = str(settings.get("type") or "SGD")
    rule = {known.lower(): rule for known, rule in _RULES.items()}.get(name.lower())
    if rule is None:
        raise ValueError(f"solver type: {name!r} is not known; allowed: {', '.join(_RULES)}")
    given = {field: settings[field] for field in _DEFAULTS if settings.get(field) is not None}
    return CaffeSolver(groups, rule, {**_DEFAULTS, **given})


class CaffeSolver(Optimizer):
    """One of Caffe's solvers. The rate is part of the history: a change of it does not touch what came before."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], rule: Rule, settings: Mapping[str, Any]) -> None:
        defaults = {"lr": settings["base_lr"], "lr_mult": 1.0, "decay_mult": 1.0, **settings}
        super().__init__([dict(group) for group in groups], defaults)
        self._rule = rule

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._clip()
        for group in self.param_groups:
            rate, decay = group["lr"] * group["lr_mult"], group["weight_decay"] * group["decay_mult"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad * (scale / group["iter_size"])
                if decay:
                    is_l1 = str(group["regularization_type"]).upper() == "L1"
                    gradient = gradient + decay * (parameter.sign() if is_l1 else parameter)
                parameter -= self._rule(group, self.state[parameter], gradient, rate)
        return loss

    def _clip(self) -> float:
        """What gradients are multiplied with so that the norm of all together stays within clip_gradients."""
        most = float(self.param_groups[0]["clip_gradients"])
        if most <= 0:
            return 1.0
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))
        return most / norm if norm > most else 1.0


def _history(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(like)
    history: Tensor = state[name]
    return history


def _sgd(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    return _history(state, "history", gradient).mul_(group["momentum"]).add_(gradient, alpha=rate)


def _nesterov(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    momentum = group["momentum"]
    before = _history(state, "history", gradient).clone()
    now = state["history"].mul_(momentum).add_(gradient, alpha=rate)
    return now * (1 + momentum) - before * momentum


def _adagrad(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    squares = _history(state, "history", gradient).addcmul_(gradient, gradient)
    return rate * gradient / (squares.sqrt() + group["delta"])


def _rmsprop(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    decay = group["rms_decay"]
    squares = _history(state, "history", gradient).mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
    return rate * gradient / (squares.sqrt() + group["delta"])


def _adadelta(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    momentum, delta = group["momentum"], group["delta"]
    squares = _history(state, "history", gradient).mul_(momentum).addcmul_(gradient, gradient, value=1 - momentum)
    updates = _history(state, "updates", gradient)
    update = gradient * ((updates + delta) / (squares + delta)).sqrt()
    updates.mul_(momentum).addcmul_(update, update, value=1 - momentum)
    return rate * update


def _adam(group: dict[str, Any], state: dict[str, Any], gradient: Tensor, rate: float) -> Tensor:
    beta1, beta2 = group["momentum"], group["momentum2"]
    state["step"] = step = state.get("step", 0) + 1
    mean = _history(state, "mean", gradient).mul_(beta1).add_(gradient, alpha=1 - beta1)
    squares = _history(state, "squares", gradient).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return rate * correction * mean / (squares.sqrt() + group["delta"])


def _multistep(settings: Settings, iteration: int) -> float:
    passed = sum(iteration >= int(step) for step in settings["stepvalue"])
    return float(settings["gamma"]) ** passed


_RULES: Mapping[str, Rule] = {
    "SGD": _sgd,
    "Nesterov": _nesterov,
    "AdaGrad": _adagrad,
    "RMSProp": _rmsprop,
    "AdaDelta": _adadelta,
    "Adam": _adam,
}
# What each policy cannot do without, and what it multiplies the base rate with.
_POLICIES: Mapping[str, tuple[Sequence[str], Callable[[Settings, int], float]]] = {
    "fixed": ((), lambda settings, iteration: 1.0),
    "step": (("stepsize", "gamma"), lambda s, iteration: float(s["gamma"]) ** (iteration // int(s["stepsize"]))),
    "multistep": (("stepvalue", "gamma"), _multistep),
    "exp": (("gamma",), lambda s, iteration: float(s["gamma"]) ** iteration),
    "inv": (("gamma", "power"), lambda s, iteration: (1 + s["gamma"] * iteration) ** -float(s["power"])),
    "poly": (("max_iter", "power"), lambda s, iteration: (1 - iteration / int(s["max_iter"])) ** float(s["power"])),
    "sigmoid": (
        ("gamma", "stepsize"),
        # 1 / (1 + exp(-x)), which overflows far from the step.
        lambda s, iteration: (1 + math.tanh(float(s["gamma"]) * (iteration - int(s["stepsize"])) / 2)) / 2,
    ),
}
