"""Values of a search, which knows numbers and texts only, as hyperparameters hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servicekit.errors import invalid

from models_service.domain.hyperparameters import (
    FIELDS,
    POLICY_FIELDS,
    SOLVER_FIELDS,
    Flag,
    Number,
    Value,
    Words,
    fields_of,
    rule_of,
)
from models_service.domain.words import read_word

_TABLES = {"solvertype": SOLVER_FIELDS, "lrpolicy": POLICY_FIELDS}
_MOST = 2**31 - 1
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class KnownHyperparameter:
    """A hyperparameter that a framework has. `data_type` is int, double, str or bool; `allowed` says what it may hold
    unless it is one of `words`."""

    name: str
    data_type: str
    allowed: str = ""
    words: tuple[str, ...] = ()


def known_hyperparameters(framework: str) -> dict[str, KnownHyperparameter]:
    """Those that some solver or policy of `framework` reads, by name, in the order of the contract."""
    has = {*fields_of(framework, None, None)}
    return {name: _known(name, framework) for name in FIELDS if name in has}


def read_values(given: Mapping[str, Any], framework: str, field: str) -> dict[str, Any]:
    """The values of `given` in the types of their hyperparameters: text that says a number, or true, is one.

    400 for a name that `framework` does not have; what a value may be is judged by `settle`.
    """
    known = known_hyperparameters(framework)
    for name in given:
        if name not in known:
            raise invalid(field, name, tuple(known), reason="UNKNOWN_FIELD")
    read = {name: _typed(value, known[name].data_type) for name, value in given.items()}
    for name, value in read.items():
        if known[name].data_type == "int" and isinstance(value, int | float) and not abs(value) <= _MOST:
            raise invalid(f"{field}.{name}", value, f"{known[name].allowed}, at most {_MOST}")
    return read


def check_value(name: str, value: Any, framework: str, field: str) -> None:
    """400, naming `field`.`name`, unless it is a value that the hyperparameter may have in `framework` by itself."""
    place, read = f"{field}.{name}", read_values({name: value}, framework, field)[name]
    if name in _TABLES:
        read_word(place, str(read), _TABLES[name][framework])
    else:
        rule_of(name, framework).read(place, read)


def _known(name: str, framework: str) -> KnownHyperparameter:
    if name in _TABLES:
        return KnownHyperparameter(name, "str", words=tuple(_TABLES[name][framework]))
    rule = rule_of(name, framework)
    if isinstance(rule, Words):
        return KnownHyperparameter(name, "str", words=rule.words)
    if isinstance(rule, Number):
        return KnownHyperparameter(name, "int" if rule.whole else "double", rule.allowed)
    return KnownHyperparameter(name, "bool" if isinstance(rule, Flag) else "str", rule.allowed)


def _typed(value: Value, data_type: str) -> Any:
    if data_type == "bool":
        return _FLAGS.get(str(value).strip().lower(), value)
    if data_type == "str":
        return str(value).lower() if isinstance(value, bool) else value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
