"""The 43 hyperparameters: what each may hold, and where it has an effect. docs/hyperparameters.md describes them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from servicekit.errors import invalid

from models_service.domain.words import MAX_TEXT_LENGTH, read_word

Value = float | int | bool | str
Hyperparameters = dict[str, Value]

_CAFFE, _TENSORFLOW, _PYTORCH = "Caffe", "TensorFlow", "PyTorch"

_L1_L2 = ("l1_regularization", "l2_regularization")
_BETAS = ("beta1", "beta2", "epsilon")
# Framework to solver to the fields that it has beside the learning rate. AdaGrad and Adagrad differ by framework only.
SOLVER_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    _CAFFE: {
        "SGD": ("momentum", "weightdecay"),
        "Nesterov": ("momentum", "weightdecay"),
        "AdaGrad": ("epsilon", "weightdecay"),
        "RMSProp": ("epsilon", "weightdecay"),
        "AdaDelta": ("momentum", "epsilon", "weightdecay"),
        # Caffe calls beta1 momentum.
        "Adam": ("momentum", *_BETAS, "weightdecay"),
    },
    _TENSORFLOW: {
        "Adam": _BETAS,
        "Momentum": ("momentum", "nesterov"),
        "RMSProp": ("optdecay", "momentum", "epsilon", "centered"),
        "GradientDescent": (),
        "Adadelta": ("optdecay", "epsilon"),
        "Adagrad": ("accumulator", "epsilon"),
        "AdagradDA": ("accumulator", *_L1_L2),
        "Ftrl": ("lr_power", "accumulator", *_L1_L2),
        "ProximalGradientDescent": _L1_L2,
        "ProximalAdagrad": ("accumulator", *_L1_L2),
    },
    _PYTORCH: {
        "SGD": ("momentum", "weightdecay", "dampening", "nesterov"),
        "Adam": (*_BETAS, "weightdecay", "amsgrad"),
        "Adagrad": ("lr_decay", "accumulator", "epsilon", "weightdecay"),
        "Adadelta": ("rho", "epsilon", "weightdecay"),
        "RMSProp": ("alpha", "momentum", "epsilon", "weightdecay", "centered"),
        "ASGD": ("lambd", "alpha", "t0", "weightdecay"),
        "SparseAdam": _BETAS,
        "Adamax": (*_BETAS, "weightdecay"),
        "Rprop": (),
    },
}
_BY_STEPS = ("decaysteps", "decayrate", "staircase")
# Framework to learning-rate policy to its fields.
POLICY_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    _CAFFE: {
        "fixed": (),
        "step": ("stepsize", "gamma"),
        "multistep": ("stepvalues", "gamma"),
        "exp": ("gamma",),
        "inv": ("gamma", "power"),
        "poly": ("power",),
        "sigmoid": ("stepsize", "gamma"),
    },
    _TENSORFLOW: {
        "fixed": (),
        "exponential": _BY_STEPS,
        "inversetime": _BY_STEPS,
        "naturalexp": _BY_STEPS,
        "piecewise": ("stepvalues", "decayrate"),
        "polynomial": ("decaysteps", "power", "end_learning_rate", "cycle"),
    },
    _PYTORCH: {
        "fixed": (),
        "step": ("stepsize", "gamma"),
        "multistep": ("stepvalues", "gamma"),
        "exponential": ("gamma",),
        "cosineannealing": ("t_max", "eta_min"),
        "reducelronplateau": ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps"),
    },
}
# What every training of a framework has.
RUN_FIELDS: Mapping[str, tuple[str, ...]] = {
    _CAFFE: ("solvertype", "lrpolicy", "learningrate", "maxiteration"),
    _TENSORFLOW: ("solvertype", "lrpolicy", "learningrate", "maxiteration", "epoch", "hiddenstatesize"),
    _PYTORCH: ("solvertype", "lrpolicy", "learningrate", "maxiteration", "epoch"),
}
# A Caffe model that names none has those of its solver.prototxt.
DEFAULT_SOLVERS: Mapping[str, str] = {_TENSORFLOW: "GradientDescent", _PYTORCH: "SGD"}
DEFAULT_POLICIES: Mapping[str, str] = {_TENSORFLOW: "fixed", _PYTORCH: "fixed"}
SOLVERS = frozenset(word for known in SOLVER_FIELDS.values() for word in known)
POLICIES = frozenset(word for known in POLICY_FIELDS.values() for word in known)


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
    allowed = "true or false"

    def read(self, field: str, value: Any) -> Value:
        if not isinstance(value, bool):
            raise invalid(field, value, ("true", "false"))
        return value


@dataclass(frozen=True)
class Words:
    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return " or ".join(self.words)

    def read(self, field: str, value: Any) -> Value:
        return read_word(field, str(value), self.words)


@dataclass(frozen=True)
class StepValues:
    """Comma-separated positive whole numbers in growing order."""

    allowed = f"whole numbers from 1 to {2**31 - 1} in growing order with commas, such as 10,20"

    def read(self, field: str, value: Any) -> Value:
        # They are read with every list of models.
        if len(str(value)) > MAX_TEXT_LENGTH:
            raise invalid(field, value, f"a text of at most {MAX_TEXT_LENGTH} characters")
        steps = [step.strip() for step in str(value).split(",")]
        if not all(step.isascii() and step.isdigit() and len(step) < 11 for step in steps):
            raise invalid(field, value, self.allowed)
        numbers = [int(step) for step in steps]
        if numbers != sorted(set(numbers)) or not 1 <= numbers[0] <= numbers[-1] <= _MOST:
            raise invalid(field, value, self.allowed)
        return ",".join(map(str, numbers))


_MOST = 2**31 - 1
_POSITIVE = Number("a number greater than 0", lambda value: value > 0)
_NOT_NEGATIVE = Number("a number of at least 0", lambda value: value >= 0)
_BELOW_ONE = Number("a number of at least 0 and less than 1", lambda value: 0 <= value < 1)
_UP_TO_ONE = Number("a number of at least 0 and at most 1", lambda value: 0 <= value <= 1)
_COUNT = Number("a whole number of at least 1", lambda value: value >= 1, whole=True)
_COUNT_OR_ZERO = Number("a whole number of at least 0", lambda value: value >= 0, whole=True)
_FLAG = Flag()

Rule = Number | Flag | Words | StepValues
FIELDS: Mapping[str, Rule | None] = {
    "learningrate": _POSITIVE,
    "momentum": _NOT_NEGATIVE,
    "weightdecay": _NOT_NEGATIVE,
    "decayrate": _POSITIVE,
    "decaysteps": _POSITIVE,
    "staircase": Words(("true", "false")),
    "maxiteration": _COUNT,
    "epoch": _COUNT,
    "solvertype": None,  # depends on the framework
    "lrpolicy": None,  # depends on the framework
    "stepsize": _COUNT,
    "stepvalues": StepValues(),
    "gamma": _POSITIVE,
    "power": _NOT_NEGATIVE,
    "cycle": _FLAG,
    "hiddenstatesize": _COUNT,
    "optdecay": _UP_TO_ONE,
    "epsilon": _NOT_NEGATIVE,
    "accumulator": _NOT_NEGATIVE,
    "l1_regularization": _NOT_NEGATIVE,
    "l2_regularization": _NOT_NEGATIVE,
    "beta1": _BELOW_ONE,
    "beta2": _BELOW_ONE,
    "lr_power": Number("a number of at most 0", lambda value: value <= 0),
    "end_learning_rate": _NOT_NEGATIVE,
    "rho": _UP_TO_ONE,
    "lr_decay": _NOT_NEGATIVE,
    "amsgrad": _FLAG,
    "lambd": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
    "t0": _NOT_NEGATIVE,
    "centered": _FLAG,
    "dampening": Number(),
    "nesterov": _FLAG,
    "t_max": _COUNT,
    "eta_min": _NOT_NEGATIVE,
    "mode": Words(("min", "max")),
    "factor": _BELOW_ONE,
    "patience": _COUNT_OR_ZERO,
    "threshold": _NOT_NEGATIVE,
    "threshold_mode": Words(("rel", "abs")),
    "cooldown": _COUNT_OR_ZERO,
    "eps": _NOT_NEGATIVE,
}
# Where one framework or policy takes less or more than the others.
_NARROWED: Mapping[tuple[str, str], Number] = {
    ("momentum", _CAFFE): _BELOW_ONE,
    ("momentum", _TENSORFLOW): _UP_TO_ONE,
    ("accumulator", _TENSORFLOW): _POSITIVE,
    ("alpha", "RMSProp"): _UP_TO_ONE,
    ("epsilon", "SparseAdam"): _POSITIVE,
    # A negative one lowers the rate.
    ("gamma", "sigmoid"): Number("a number other than 0", lambda value: value != 0),
}
# What a policy cannot do without; Caffe's may stand in solver.prototxt.
_NEEDED: Mapping[tuple[str, str], tuple[str, ...]] = {
    (_CAFFE, "step"): ("stepsize", "gamma"),
    (_CAFFE, "multistep"): ("stepvalues", "gamma"),
    (_CAFFE, "exp"): ("gamma",),
    (_CAFFE, "inv"): ("gamma", "power"),
    (_CAFFE, "poly"): ("power",),
    (_CAFFE, "sigmoid"): ("stepsize", "gamma"),
    (_PYTORCH, "step"): ("stepsize",),
    (_PYTORCH, "multistep"): ("stepvalues",),
    (_TENSORFLOW, "exponential"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "inversetime"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "naturalexp"): ("decaysteps", "decayrate"),
    (_TENSORFLOW, "polynomial"): ("decaysteps",),
    (_TENSORFLOW, "piecewise"): ("stepvalues", "decayrate"),
}
# What solver.prototxt calls one of them otherwise.
_SOLVER_NAMES = {"stepvalues": "stepvalue"}
# Elastic programs do not tell it the mean loss of an epoch.
_NOT_ELASTIC = ("reducelronplateau",)


def settle(
    current: Mapping[str, Value], given: Mapping[str, Any], framework: str, field: str = "hyperparameter"
) -> Hyperparameters:
    """What holds after `given` (contract name to value; an empty text means not given) is put over `current`.

    400, naming the field as `hyperparameter.<name>`, for an unknown field, a value out of range, and a word that
    `framework` does not have. What has no effect on the solver and policy that hold is kept all the same: clients send
    all fields, and a search may try another solver with the same values. A 0 or false without effect is left out.
    """
    given = {name: value for name, value in given.items() if value not in ("", None)}
    for name in given:
        if name not in FIELDS:
            raise invalid(field, name, tuple(FIELDS), reason="UNKNOWN_FIELD")
    solver = _word("solvertype", SOLVER_FIELDS, current, given, framework, field)
    policy = _word("lrpolicy", POLICY_FIELDS, current, given, framework, field)
    effective = {*fields_of(framework, solver, policy)}
    settled: Hyperparameters = {}
    for name, value in {**current, **given}.items():
        if name in ("solvertype", "lrpolicy"):
            word = solver if name == "solvertype" else policy
            if word and (name in given or value == word):
                settled[name] = word
        elif name in effective:
            settled[name] = rule_of(name, framework, solver, policy).read(f"{field}.{name}", value)
        elif value != 0 and str(value).casefold() != "false":
            settled[name] = rule_of(name).read(f"{field}.{name}", value)
    return settled


def fields_of(framework: str, solver: str | None, policy: str | None) -> Iterator[str]:
    """The fields that count with `solver` and `policy`; with None those of all that `framework` has."""
    yield from RUN_FIELDS[framework]
    for table, word in ((SOLVER_FIELDS, solver), (POLICY_FIELDS, policy)):
        for known, fields in table[framework].items():
            if word in (None, known):
                yield from fields


def check_complete(
    hyperparameters: Mapping[str, Value],
    framework: str,
    accelerator: str = "",
    solver_file: Mapping[str, str] | None = None,
    field: str = "hyperparameter",
) -> None:
    """Raise for what one value needs of the others; `hyperparameters` are all that a run would get, already settled.

    `solver_file` is what a Caffe model's solver.prototxt says, by its own names.
    """
    in_file = {name: value for name, value in (solver_file or {}).items() if value}
    solver = str(hyperparameters.get("solvertype") or DEFAULT_SOLVERS.get(framework))
    policy = str(hyperparameters.get("lrpolicy") or in_file.get("lr_policy") or "fixed")
    if accelerator == "Elastic" and policy in _NOT_ELASTIC:
        others = ", ".join(known for known in POLICY_FIELDS[framework] if known not in _NOT_ELASTIC)
        raise invalid(f"{field}.lrpolicy", policy, f"with the accelerator Elastic one of {others}")
    for name in _NEEDED.get((framework, policy), ()):
        if name not in hyperparameters and _SOLVER_NAMES.get(name, name) not in in_file:
            there = ", here or in solver.prototxt" if framework == _CAFFE else ""
            raise invalid(f"{field}.{name}", "", f"given{there}, lrpolicy {policy} needs it")
    if hyperparameters.get("nesterov") and "nesterov" in SOLVER_FIELDS[framework].get(solver, ()):
        # Keras' own momentum, where none is given, is not 0.
        if framework == _PYTORCH and not (momentum := hyperparameters.get("momentum", 0.0)):
            raise invalid(f"{field}.momentum", momentum, "a number greater than 0, nesterov needs it")
        if framework == _PYTORCH and (dampening := hyperparameters.get("dampening", 0.0)):
            raise invalid(f"{field}.dampening", dampening, "0, nesterov needs it")


def check_duration(
    hyperparameters: Mapping[str, Value],
    framework: str,
    solver_file: Mapping[str, str],
    field: str = "hyperparameter",
) -> None:
    """Raise when nothing says how long a training takes, which Caffe has no default for; else as `check_complete`."""
    if framework != _CAFFE or "maxiteration" in hyperparameters:
        return
    text = solver_file.get("max_iter", "0")
    # What is no number that Python knows is left to the training: 0777 is one to Caffe.
    with contextlib.suppress(ValueError):
        if int(text, 0) < 1:
            allowed = "a whole number of at least 1, here or as max_iter in solver.prototxt"
            raise invalid(f"{field}.maxiteration", text if "max_iter" in solver_file else "", allowed)


def rule_of(name: str, *places: str | None) -> Rule:
    """What a field may hold; less or more in some of the `places` (framework, solver, policy)."""
    narrowed = (_NARROWED.get((name, where)) for where in places if where)
    rule = next((rule for rule in narrowed if rule), FIELDS[name])
    assert rule is not None, f"{name} is a word"
    return rule


def _word(
    name: str,
    table: Mapping[str, Mapping[str, tuple[str, ...]]],
    current: Mapping[str, Value],
    given: Mapping[str, Any],
    framework: str,
    field: str,
) -> str | None:
    """The solver or policy that holds; None where only the program's files say it."""
    if name in given:
        return read_word(f"{field}.{name}", str(given[name]), table[framework])
    if (word := current.get(name)) in table[framework]:
        return str(word)
    return (DEFAULT_SOLVERS if name == "solvertype" else DEFAULT_POLICIES).get(framework)
