"""What the solver's prototxt says, overridden by the model's hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caffe_nets.schema import CaffeError, enum_word

# Before `type` there was an enum.
_OLD_TYPES = {
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
_FIELDS = (
    "type", "base_lr", "momentum", "weight_decay", "regularization_type", "lr_policy", "gamma", "power", "stepsize",
    "max_iter", "delta", "momentum2", "rms_decay", "clip_gradients", "iter_size",
)  # fmt: skip
_HYPERPARAMETERS = {
    "solvertype": "type",
    "learningrate": "base_lr",
    "momentum": "momentum",
    "weightdecay": "weight_decay",
    "lrpolicy": "lr_policy",
    "gamma": "gamma",
    "power": "power",
    "stepsize": "stepsize",
    "maxiteration": "max_iter",
    "epsilon": "delta",
    "beta1": "momentum",
    "beta2": "momentum2",
}
_BASICS = ("solvertype", "lrpolicy", "learningrate", "maxiteration")
# The hyperparameters that a solver or a policy knows; beta1 is Adam's momentum and stands over it.
_OF_SOLVERS = {
    "sgd": ("momentum", "weightdecay"),
    "nesterov": ("momentum", "weightdecay"),
    "adagrad": ("epsilon", "weightdecay"),
    "rmsprop": ("epsilon", "weightdecay"),
    "adadelta": ("momentum", "epsilon", "weightdecay"),
    "adam": ("momentum", "beta1", "beta2", "epsilon", "weightdecay"),
}
_OF_POLICIES = {
    "step": ("stepsize", "gamma"),
    "multistep": ("stepvalues", "gamma"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "poly": ("power",),
    "sigmoid": ("stepsize", "gamma"),
}
# What cannot be 0: there it means "not given".
_NEVER_ZERO = {"learningrate", "maxiteration", "stepsize", "gamma"}


def solver_settings(solver: Any, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that caffe_solvers takes, by their names in solver.prototxt.

    Hyperparameters that solver and policy do not know have no effect. CaffeError names what is no list of steps.
    """
    given = {
        name: value
        for name, value in hyperparameters.items()
        if value not in ("", None) and not (value == 0 and name in _NEVER_ZERO)
    }
    settings: dict[str, Any] = {name: getattr(solver, name) for name in _FIELDS}
    settings["stepvalue"] = list(solver.stepvalue)
    if not solver.HasField("power"):
        settings["power"] = None
    if solver.HasField("solver_type") and not solver.HasField("type"):
        settings["type"] = _OLD_TYPES.get(enum_word(solver, "solver_type"), "SGD")
    kind = str(given.get("solvertype") or settings["type"] or "SGD")
    policy = str(given.get("lrpolicy") or settings["lr_policy"] or "fixed")
    known = {*_BASICS, *_OF_SOLVERS.get(kind.lower(), ()), *_OF_POLICIES.get(policy, ())}
    settings |= {field: given[name] for name, field in _HYPERPARAMETERS.items() if name in given and name in known}
    if "stepvalues" in known and (values := str(given.get("stepvalues") or "").strip()):
        try:
            settings["stepvalue"] = [int(value) for value in values.split(",") if value.strip()]
        except ValueError as error:
            raise CaffeError(f"stepvalues: {values!r} is not a list of numbers with commas") from error
    return settings
