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
    "beta2": "momentum2",
}


def solver_settings(solver: Any, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that caffe_solvers takes, by their names in solver.prototxt."""
    settings: dict[str, Any] = {name: getattr(solver, name) for name in _FIELDS}
    settings["stepvalue"] = list(solver.stepvalue)
    if solver.HasField("solver_type") and not solver.HasField("type"):
        settings["type"] = _OLD_TYPES.get(enum_word(solver, "solver_type"), "SGD")
    for name, field in _HYPERPARAMETERS.items():
        # Clients send 0 where they mean "not given".
        if hyperparameters.get(name):
            settings[field] = hyperparameters[name]
    if str(settings["type"]).lower() == "adam" and hyperparameters.get("beta1"):
        settings["momentum"] = hyperparameters["beta1"]
    if values := str(hyperparameters.get("stepvalues") or "").strip():
        try:
            settings["stepvalue"] = [int(value) for value in values.split(",") if value.strip()]
        except ValueError as error:
            raise CaffeError(f"stepvalues: {values!r} is not a list of numbers with commas") from error
    return settings
