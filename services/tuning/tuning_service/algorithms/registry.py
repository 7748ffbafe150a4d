"""Which algorithms there are: one literal table, loaded by name where searches are thought out, not in the service."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from servicekit.errors import ServiceError, invalid

from tuning_service.algorithms.base import Algorithm, Problem


@dataclass(frozen=True)
class Parameter:
    """An entry of `algoParams`, whose values clients send as text.

    `default` None means that it has to be given, unless it is `optional`. Numbers lie from `low` to `high`; where there
    are `names`, a text is one of them, in any case.
    """

    name: str
    type: type
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False
    names: Sequence[str] = ()

    @property
    def allowed(self) -> str:
        """In words."""
        if self.names:
            return f"one of {', '.join(self.names)}"
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return "a text that is not empty"
        kind = "a whole number" if self.type is int else "a number"
        ends = [
            f"from {self.low:g}" if math.isfinite(self.low) else "",
            f"to {self.high:g}" if math.isfinite(self.high) else "",
        ]
        return " ".join([kind, *filter(None, ends)])

    def read(self, text: str) -> Any:
        """The value of what a client sent; 400 naming the parameter."""
        text = text.strip()
        try:
            if self.type is bool:
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            if self.names:
                return {name.lower(): name for name in self.names}[text.lower()]
            value = self.type(text)
        except (ValueError, KeyError):
            value = None
        if value is None or value == "" or (self.type is not str and not self.low <= value <= self.high):
            raise invalid(f"algoParams.{self.name}", text, self.allowed)
        return value


@dataclass(frozen=True)
class Entry:
    """An algorithm: where its class is, and what its users may set.

    `resource` ones need to be told what their trials are given more and more of. `max_objectives` is how many metrics
    they can weigh against each other. Those that `learns` can begin with what earlier studies found.
    """

    place: str
    parameters: Sequence[Parameter] = ()
    max_objectives: int = 1
    learns: bool = False

    @property
    def needs_resource(self) -> bool:
        return any(parameter.name == "ResourceName" for parameter in self.parameters)


MANY = 8
_SEED = Parameter("RandomSeed", int, optional=True, low=0, high=2**63 - 1)
_RESOURCE = (
    Parameter("ResourceName", str),
    Parameter("ResourceValue", int, low=1, high=2**31 - 1),
    Parameter("MinResource", int, default=1, low=1, high=2**31 - 1),
)
# Of nevergrad's 500: those that take any space, several trials at a time, and trials that they did not ask for.
OPTIMIZERS = (
    "NGOpt",
    "NgIohTuned",
    "MetaModel",
    "CMA",
    "DiagonalCMA",
    "DE",
    "TwoPointsDE",
    "LhsDE",
    "PSO",
    "TBPSA",
    "OnePlusOne",
    "DiscreteOnePlusOne",
    "DoubleFastGADiscreteOnePlusOne",
    "ScrHammersleySearch",
)

ALGORITHMS: Mapping[str, Entry] = {
    "Random": Entry("tuning_service.algorithms.random_search:RandomSearch", (_SEED,), MANY),
    "TPE": Entry(
        "tuning_service.algorithms.tpe:Tpe",
        (
            _SEED,
            Parameter("WarmUp", int, default=10, low=1, high=100_000),
            Parameter("EICandidate", int, default=24, low=1, high=10_000),
            Parameter("GoodRatio", float, default=0.1, low=0.001, high=1.0),
            Parameter("GoodMax", int, default=25, low=1, high=100_000),
        ),
        MANY,
        learns=True,
    ),
    "Bayesian": Entry(
        "tuning_service.algorithms.bayesian:Bayesian",
        (
            _SEED,
            Parameter("InitPoints", int, default=10, low=1, high=100_000),
            Parameter("CubeSize", int, optional=True, low=1, high=100_000),
            Parameter("Noiseless", bool, default=True),
        ),
        MANY,
        learns=True,
    ),
    "Nevergrad": Entry(
        "tuning_service.algorithms.nevergrad_search:Nevergrad",
        (_SEED, Parameter("Optimizer", str, default=OPTIMIZERS[0], names=OPTIMIZERS)),
    ),
    "Hyperband": Entry(
        "tuning_service.algorithms.hyperband:Hyperband",
        (_SEED, *_RESOURCE, Parameter("eta", float, default=3.0, low=1.5, high=100.0)),
    ),
    "ASHA": Entry(
        "tuning_service.algorithms.asha:Asha",
        (_SEED, *_RESOURCE, Parameter("eta", float, default=3.0, low=1.5, high=100.0)),
    ),
    "ExperimentGridSearch": Entry("tuning_service.algorithms.experiment_list:ExperimentList", (), MANY),
}


def find(name: str) -> tuple[str, Entry] | None:
    """An algorithm and its name as it is printed, by its name in any case; None when there is none."""
    known = {known.lower(): known for known in ALGORITHMS}
    printed = known.get(name.lower())
    return None if printed is None else (printed, ALGORITHMS[printed])


def read_settings(entry: Entry, given: Mapping[str, str]) -> dict[str, Any]:
    """`algoParams`, typed and complete; names in any case. 400 for what is unknown, missing or out of range."""
    by_name = {parameter.name.lower(): parameter for parameter in entry.parameters}
    settings: dict[str, Any] = {}
    for name, text in given.items():
        parameter = by_name.get(name.lower())
        if parameter is None:
            raise invalid("algoParams", name, [parameter.name for parameter in entry.parameters] or "none")
        settings[parameter.name] = parameter.read(text)
    for parameter in entry.parameters:
        if parameter.name in settings:
            continue
        if parameter.default is None and not parameter.optional:
            raise _missing(parameter)
        settings[parameter.name] = parameter.default
    return settings


def make_algorithm(name: str, problem: Problem) -> Algorithm:
    """The algorithm of the table for one study. Imports what it stands on: for processes that think out searches."""
    found = find(name)
    if found is None:
        raise ValueError(f"no algorithm {name}; known: {', '.join(ALGORITHMS)}")
    module, _, made = found[1].place.partition(":")
    return cast(Algorithm, getattr(importlib.import_module(module), made)(problem))


def _missing(parameter: Parameter) -> ServiceError:
    return invalid(f"algoParams.{parameter.name}", "", f"{parameter.allowed}; it has to be given")
