"""The 43 hyperparameters: type and range of each, by its name in the contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from servicekit.errors import invalid

from models_service.domain.words import read_word

Value = float | int | bool | str
Hyperparameters = dict[str, Value]

_CAFFE, _TENSORFLOW, _PYTORCH = "Caffe", "TensorFlow", "PyTorch"
_ALL = (_CAFFE, _TENSORFLOW, _PYTORCH)

# Which framework knows which word; AdaGrad and Adagrad differ only by case, and by framework.
SOLVERS: Mapping[str, tuple[str, ...]] = {
    "AdaGrad": (_CAFFE,),
    "AdaDelta": (_CAFFE,),
    "Adam": _ALL,
    "Momentum": (_TENSORFLOW,),
    "RMSProp": _ALL,
    "SGD": (_CAFFE, _PYTORCH),
    "ASGD": (_PYTORCH,),
    "Nesterov": (_CAFFE,),
    "GradientDescent": (_TENSORFLOW,),
    "Adadelta": (_TENSORFLOW, _PYTORCH),
    "Adagrad": (_TENSORFLOW, _PYTORCH),
    "AdagradDA": (_TENSORFLOW,),
    "Ftrl": (_TENSORFLOW,),
    "SparseAdam": (_PYTORCH,),
    "Adamax": (_PYTORCH,),
    "Rprop": (_PYTORCH,),
    "ProximalGradientDescent": (_TENSORFLOW,),
    "ProximalAdagrad": (_TENSORFLOW,),
}
POLICIES: Mapping[str, tuple[str, ...]] = {
    "fixed": _ALL,
    "step": (_CAFFE, _PYTORCH),
    "multistep": (_CAFFE, _PYTORCH),
    "exp": (_CAFFE,),
    "inv": (_CAFFE,),
    "poly": (_CAFFE,),
    "sigmoid": (_CAFFE,),
    "exponential": (_TENSORFLOW, _PYTORCH),
    "inversetime": (_TENSORFLOW,),
    "naturalexp": (_TENSORFLOW,),
    "piecewise": (_TENSORFLOW,),
    "polynomial": (_TENSORFLOW,),
    "cosineannealing": (_PYTORCH,),
    "reducelronplateau": (_PYTORCH,),
}


@dataclass(frozen=True)
class Number:
    """A number and its range; `allowed` says the range in words."""

    allowed: str = "a finite number"
    accepts: Callable[[float], bool] = lambda value: True
    whole: bool = False

    def read(self, field: str, value: Any) -> Value:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise invalid(field, value, self.allowed)
        if (self.whole and value != int(value)) or not self.accepts(value):
            raise invalid(field, value, self.allowed)
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Flag:
    def read(self, field: str, value: Any) -> Value:
        if not isinstance(value, bool):
            raise invalid(field, value, ("true", "false"))
        return value


@dataclass(frozen=True)
class Words:
    words: tuple[str, ...]

    def read(self, field: str, value: Any) -> Value:
        return read_word(field, str(value), self.words)


@dataclass(frozen=True)
class StepValues:
    """Comma-separated positive whole numbers in growing order."""

    def read(self, field: str, value: Any) -> Value:
        steps = [step.strip() for step in str(value).split(",")]
        if not all(step.isascii() and step.isdigit() and len(step) < 16 for step in steps):
            raise invalid(field, value, "whole numbers separated by commas, such as 10,20")
        numbers = [int(step) for step in steps]
        if numbers != sorted(set(numbers)):
            raise invalid(field, value, "whole numbers in growing order, such as 10,20")
        return ",".join(map(str, numbers))


_ANY = Number()
_POSITIVE = Number("a number greater than 0", lambda value: value > 0)
_NOT_NEGATIVE = Number("a number of at least 0", lambda value: value >= 0)
_FRACTION = Number("a number of at least 0 and less than 1", lambda value: 0 <= value < 1)
_COUNT = Number("a whole number of at least 1", lambda value: value >= 1, whole=True)
_COUNT_OR_ZERO = Number("a whole number of at least 0", lambda value: value >= 0, whole=True)
_FLAG = Flag()

FIELDS: Mapping[str, Number | Flag | Words | StepValues | None] = {
    "learningrate": _POSITIVE,
    "momentum": _NOT_NEGATIVE,
    "weightdecay": _NOT_NEGATIVE,
    "decayrate": _NOT_NEGATIVE,
    "decaysteps": _NOT_NEGATIVE,
    "staircase": Words(("true", "false")),
    "maxiteration": _COUNT,
    "epoch": _COUNT,
    "solvertype": None,  # depends on the framework
    "lrpolicy": None,  # depends on the framework
    "stepsize": _COUNT_OR_ZERO,
    "stepvalues": StepValues(),
    "gamma": _ANY,
    "power": _ANY,
    "cycle": _FLAG,
    "hiddenstatesize": _COUNT_OR_ZERO,
    "optdecay": _ANY,
    "epsilon": _NOT_NEGATIVE,
    "accumulator": _NOT_NEGATIVE,
    "l1_regularization": _NOT_NEGATIVE,
    "l2_regularization": _NOT_NEGATIVE,
    "beta1": _FRACTION,
    "beta2": _FRACTION,
    "lr_power": Number("a number of at most 0", lambda value: value <= 0),
    "end_learning_rate": _NOT_NEGATIVE,
    "rho": Number("a number of at least 0 and at most 1", lambda value: 0 <= value <= 1),
    "lr_decay": _NOT_NEGATIVE,
    "amsgrad": _FLAG,
    "lambd": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
    "t0": _NOT_NEGATIVE,
    "centered": _FLAG,
    "dampening": _ANY,
    "nesterov": _FLAG,
    "t_max": _COUNT_OR_ZERO,
    "eta_min": _NOT_NEGATIVE,
    "mode": Words(("min", "max")),
    "factor": _FRACTION,
    "patience": _COUNT_OR_ZERO,
    "threshold": _NOT_NEGATIVE,
    "threshold_mode": Words(("rel", "abs")),
    "cooldown": _COUNT_OR_ZERO,
    "eps": _NOT_NEGATIVE,
}


def read_hyperparameters(values: Mapping[str, Any], framework: str, field: str = "hyperparameter") -> Hyperparameters:
    """Check `values` (contract name to value) for `framework`; an empty text means not given.

    400 names the field as `hyperparameter.<name>`.
    """
    checked: Hyperparameters = {}
    for name, value in values.items():
        if value == "" or value is None:
            continue
        path = f"{field}.{name}"
        if name == "solvertype":
            checked[name] = read_word(path, str(value), _known(SOLVERS, framework))
        elif name == "lrpolicy":
            checked[name] = read_word(path, str(value), _known(POLICIES, framework))
        elif (rule := FIELDS.get(name)) is not None:
            checked[name] = rule.read(path, value)
        else:
            raise invalid(field, name, tuple(FIELDS), reason="UNKNOWN_FIELD")
    return checked


# What a policy cannot do without. Caffe's may stand in solver.prototxt; a training says there what is missing.
_NEEDED: Mapping[tuple[str, str], tuple[str, ...]] = {
    (_PYTORCH, "step"): ("stepsize",),
    (_PYTORCH, "multistep"): ("stepvalues",),
    (_TENSORFLOW, "exponential"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "inversetime"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "naturalexp"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "polynomial"): ("decaysteps",),
    (_TENSORFLOW, "piecewise"): ("stepvalues", "decayrate"),
}


def check_complete(hyperparameters: Mapping[str, Value], framework: str, field: str = "hyperparameter") -> None:
    """Raise for what one value needs of the others; `hyperparameters` are all that a run would get, already read."""
    policy = str(hyperparameters.get("lrpolicy", "fixed"))
    for name in _NEEDED.get((framework, policy), ()):
        if not (value := hyperparameters.get(name)):
            raise invalid(
                f"{field}.{name}", "" if value is None else value, f"given and not 0, lrpolicy {policy} needs it"
            )
    if framework == _PYTORCH and hyperparameters.get("nesterov"):
        if not (momentum := hyperparameters.get("momentum", 0.0)):
            raise invalid(f"{field}.momentum", momentum, "a number greater than 0, nesterov needs it")
        if dampening := hyperparameters.get("dampening", 0.0):
            raise invalid(f"{field}.dampening", dampening, "0, nesterov needs it")
    momentum = hyperparameters.get("momentum", 0.0)
    if framework == _TENSORFLOW and float(momentum) > 1:
        raise invalid(f"{field}.momentum", momentum, "a number of at least 0 and at most 1 for TensorFlow")


def _known(words: Mapping[str, tuple[str, ...]], framework: str) -> list[str]:
    return [word for word, frameworks in words.items() if framework in frameworks]
