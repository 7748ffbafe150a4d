"""`hyperParams` and `experiments` as clients write them, read into a space or a list of trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from servicekit.errors import invalid
from servicekit.texts import storable

from tuning_service.domain.fields import Fields, as_number, as_whole, shown
from tuning_service.domain.space import Choice, Continuous, DataType, Dimension, Fixed, Levels, Space, Steps, Value

MAX_PARAMETERS = 1000
MAX_VALUES = 10_000
MAX_EXPERIMENTS = 100_000
MAX_TEXT = 10_000
# Whole numbers and powers beyond it would not be the same everywhere.
_BIGGEST = 2**63 - 1

_TYPES = {"range": "Range", "discrete": "Discrete", "fix": "Fix", "fixed": "Fix"}
_DATA_TYPES = {
    "int": "int",
    "integer": "int",
    "double": "double",
    "float": "double",
    "str": "str",
    "string": "str",
}
_DISCRETE = {DataType.INT: "discreteIntVal", DataType.DOUBLE: "discreteDbVal", DataType.STR: "discreateStrVal"}
_ENDS = {DataType.INT: ("minIntVal", "maxIntVal"), DataType.DOUBLE: ("minDbVal", "maxDbVal")}


def read_space(tree: Fields, *, resource: str = "") -> Space:
    """The space of `hyperParams`; the parameter called `resource`, which Hyperband sets itself, is no part of it."""
    dimensions: list[Dimension] = []
    fixed: list[Fixed] = []
    parameters = tree.objects("hyperParams")
    if len(parameters) > MAX_PARAMETERS:
        raise invalid("hyperParams", f"{len(parameters)} parameters", f"at most {MAX_PARAMETERS}")
    names: set[str] = set()
    for parameter in parameters:
        name = _name(parameter, names)
        read = _parameter(name, parameter)
        if name == resource:
            continue
        if isinstance(read, Fixed):
            fixed.append(read)
        else:
            dimensions.append(read)
    return Space(tuple(dimensions), tuple(fixed))


def read_experiments(tree: Fields, list_name: str = "hyperParams") -> list[tuple[int, tuple[Fixed, ...]]]:
    """The trials of `experiments`, id and parameters, in their order."""
    experiments = tree.objects("experiments")
    if len(experiments) > MAX_EXPERIMENTS:
        raise invalid("experiments", f"{len(experiments)} experiments", f"at most {MAX_EXPERIMENTS}")
    found = []
    ids: set[int] = set()
    for experiment in experiments:
        number = experiment.whole("id")
        if number is None:
            raise invalid(experiment.place("id"), "", "a whole number; it has to be given")
        if number in ids or not 0 <= number < 2**31:
            raise invalid(experiment.place("id"), number, "a number from 0 to 2147483647 that no other experiment has")
        ids.add(number)
        names: set[str] = set()
        parameters = experiment.objects(list_name) or experiment.objects("hyperParams")
        if not parameters:
            raise invalid(experiment.place(list_name), "", "at least one parameter")
        found.append((number, tuple(_fixed(_name(parameter, names), parameter) for parameter in parameters)))
    return found


def as_value(place: str, value: Any, data_type: DataType) -> Value:
    """A value of a type; 400."""
    if data_type is DataType.INT:
        number = as_whole(place, value)
        if abs(number) > _BIGGEST:
            raise invalid(place, shown(value), f"{-_BIGGEST} to {_BIGGEST}")
        return number
    if data_type is DataType.DOUBLE:
        return as_number(place, value)
    if isinstance(value, list | dict | tuple | set | bytes) or value is None:
        raise invalid(place, shown(value), "a text")
    if len(str(value)) > MAX_TEXT or storable(str(value)) != str(value):
        raise invalid(place, shown(str(value)), f"a text of at most {MAX_TEXT} characters, none of them 0")
    return str(value)


def type_of(parameter: Fields) -> DataType:
    """What `dataType` says."""
    return DataType(parameter.word("dataType", _DATA_TYPES))


def _name(parameter: Fields, names: set[str]) -> str:
    name = parameter.text("name")
    if len(name) > 256 or not name.isprintable():
        raise invalid(parameter.place("name"), shown(name), "at most 256 printable characters")
    if name in names:
        raise invalid(parameter.place("name"), name, "a name that no other parameter has")
    names.add(name)
    return name


def _fixed(name: str, parameter: Fields, *, user_defined: bool = False) -> Fixed:
    data_type = type_of(parameter)
    _, value = parameter.get("fixedVal")
    if value is None:
        raise invalid(parameter.place("fixedVal"), "", f"a value of type {data_type}; it has to be given")
    return Fixed(name, data_type, as_value(parameter.place("fixedVal"), value, data_type), user_defined)


def _parameter(name: str, parameter: Fields) -> Dimension | Fixed:
    kind = parameter.word("type", _TYPES)
    _, given = parameter.get("userDefined")
    user_defined = given is True or str(given).lower() == "true"
    if kind == "Fix":
        return _fixed(name, parameter, user_defined=user_defined)
    data_type = type_of(parameter)
    read = _discrete(name, parameter, data_type) if kind == "Discrete" else _range(name, parameter, data_type)
    if isinstance(read, Fixed) or read.size != 1:
        return read
    return Fixed(name, data_type, read.value(0), user_defined)


def _discrete(name: str, parameter: Fields, data_type: DataType) -> Dimension:
    field = _DISCRETE[data_type]
    for unused in ("step", "power"):
        if unused in parameter:
            raise invalid(
                parameter.place(unused), shown(parameter.get(unused)[1]), "nothing; it is for type Range only"
            )
    values = parameter.items(field)
    if not 1 <= len(values) <= MAX_VALUES:
        raise invalid(parameter.place(field), f"{len(values)} values", f"1 to {MAX_VALUES} values of type {data_type}")
    read = [as_value(f"{parameter.place(field)}[{index}]", value, data_type) for index, value in enumerate(values)]
    read = list(dict.fromkeys(read))
    if data_type is DataType.STR:
        return Choice(name, data_type, tuple(read))
    return Levels(name, data_type, tuple(sorted(read, key=float)))


def _range(name: str, parameter: Fields, data_type: DataType) -> Dimension | Fixed:
    if data_type is DataType.STR:
        raise invalid(parameter.place("type"), "Range", "Discrete or Fix for a parameter of type str")
    low_name, high_name = _ENDS[data_type]
    low, high = _end(parameter, low_name, data_type), _end(parameter, high_name, data_type)
    if low > high:
        raise invalid(parameter.place(high_name), shown(parameter.get(high_name)[1]), f"at least {low}, {low_name}")
    step = _positive(parameter, "step")
    base = _positive(parameter, "power")
    if base is not None:
        _check_power(parameter, low, high, base, data_type, step)
    if data_type is DataType.INT:
        step = step or Decimal(1)
        if step != step.to_integral_value():
            raise invalid(parameter.place("step"), step, "a whole number for a parameter of type int")
    if step is not None and high > low and step > high - low:
        raise invalid(parameter.place("step"), step, f"at most {high - low}, the length of the range")
    if low == high:
        return Fixed(name, data_type, Steps(low, Decimal(1), 1, data_type, base)[0])
    if step is None:
        return Continuous(name, float(low), float(high), None if base is None else float(base))
    count = int((high - low) / step + Decimal("1e-9")) + 1
    if count > 2**53:
        raise invalid(parameter.place("step"), step, "a step that makes fewer values")
    return Levels(name, data_type, Steps(low, step, count, data_type, base))


def _end(parameter: Fields, field: str, data_type: DataType) -> Decimal:
    _, value = parameter.get(field)
    if value is None:
        raise invalid(parameter.place(field), "", f"a number of type {data_type}; it has to be given")
    return Decimal(str(as_value(parameter.place(field), value, data_type)))


def _positive(parameter: Fields, field: str) -> Decimal | None:
    """A number above 0, as exactly as it was written."""
    _, value = parameter.get(field)
    if value is None or value == "":
        return None
    as_number(parameter.place(field), value)
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal(str(float(value)))
    if number <= 0 or not math.isfinite(float(number)) or float(number) == 0.0:
        raise invalid(parameter.place(field), shown(value), "a number above 0")
    return number


def _check_power(
    parameter: Fields, low: Decimal, high: Decimal, base: Decimal, data_type: DataType, step: Decimal | None
) -> None:
    """400 when some value of base^x is none of the type."""
    place = parameter.place("power")
    if base == 1:
        raise invalid(place, base, "a number above 0 other than 1; the values are power^x")
    if data_type is DataType.INT and (base != base.to_integral_value() or low < 0):
        raise invalid(place, base, "a whole number, and exponents from 0 on, for a parameter of type int")
    if data_type is DataType.INT:
        # In whole numbers: rounded, 2^63 would be as small as what can be held.
        if high * Decimal(math.log2(base)) > 64 or int(base) ** int(high) > _BIGGEST:
            raise invalid(place, base, f"a base whose powers of {low} to {high} a number of type int can hold")
        return
    limit = math.log(1e300)
    if max(abs(low), abs(high)) * Decimal(abs(math.log(float(base)))) >= Decimal(limit):
        raise invalid(place, base, f"a base whose powers of {low} to {high} a number of type {data_type} can hold")


def user_defined(parameters: Sequence[Fields]) -> frozenset[str]:
    """The names of those of `parameters` that are the user's program's own."""
    return frozenset(
        parameter.text("name") for parameter in parameters if str(parameter.get("userDefined")[1]).lower() == "true"
    )
