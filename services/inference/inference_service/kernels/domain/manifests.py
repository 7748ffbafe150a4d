"""model.json, and the texts of requests that say the same: what a model with a kernel says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servicekit.errors import invalid

from inference_service.kernels.domain.profiles import (
    Pairs,
    check_attributes,
    check_environments,
    check_text,
    check_umask,
    read_limits,
)

FILE, DEFAULT_KERNEL = "model.json", "kernel.py"
MAX_BYTES = 1024 * 1024
# The reference's spellings beside those that its successor's programs write.
_SPELLINGS = {
    "mc_path": "kernel_path",
    "mc_resource_req": "mk_resource_req",
    "mc_umask": "mk_umask",
    "mc_environments": "mk_environments",
    "mc_instance_min": "mk_instance_min",
    "mc_instance_max": "mk_instance_max",
}


@dataclass(frozen=True)
class Manifest:
    """What is in it; empty or None for what is not. Other keys are ignored: servers write some of their own."""

    name: str = ""
    type: str = ""
    tag: str = ""
    runtime: str = ""
    schema_version: str = ""
    kernel_path: str = ""
    weight_path: str = ""
    attributes: Pairs = ()
    environments: Pairs = ()
    resource_requirement: str = ""
    umask: str = ""
    instance_min: int | None = None
    instance_max: int | None = None


def read_manifest(text: bytes) -> Manifest:
    """400 naming the key, as `model.json, tag`, for what may not be so."""
    if len(text) > MAX_BYTES:
        raise invalid(FILE, f"({len(text)} bytes)", f"at most {MAX_BYTES} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(FILE, f"({error})", "a JSON object") from error
    if not isinstance(value, dict):
        raise invalid(FILE, value, "a JSON object")
    values: dict[str, Any] = {_SPELLINGS.get(str(key), str(key)): one for key, one in value.items() if one is not None}
    _text(values, "model_path")
    requirement, umask = _text(values, "mk_resource_req"), _text(values, "mk_umask")
    read_limits(_key("mk_resource_req"), requirement)
    return Manifest(
        name=_text(values, "name"),
        type=_text(values, "type"),
        tag=_text(values, "tag"),
        runtime=_text(values, "runtime"),
        schema_version=_text(values, "schema_version"),
        kernel_path=_text(values, "kernel_path"),
        weight_path=_text(values, "weight_path"),
        attributes=check_attributes(_key("attributes"), read_pairs(_key("attributes"), values.get("attributes", []))),
        environments=check_environments(
            _key("mk_environments"), read_pairs(_key("mk_environments"), values.get("mk_environments", []), "name")
        ),
        resource_requirement=requirement,
        umask=check_umask(_key("mk_umask"), umask) if umask else "",
        instance_min=_number(values, "mk_instance_min"),
        instance_max=_number(values, "mk_instance_max"),
    )


def read_pairs_text(field: str, text: str, key: str = "key") -> Pairs:
    """As `read_pairs`, of a text in JSON; an empty text is nothing."""
    if not text.strip():
        return ()
    try:
        value = json.loads(text) if len(text) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        raise invalid(field, text, _pairs_allowed(key))
    return read_pairs(field, value, key)


def read_pairs(field: str, value: Any, key: str = "key") -> Pairs:
    """`{"k": "v"}` or `[{"key": "k", "value": "v"}]`, `key` being what the first of both is called; numbers and truth
    values become text. 400 naming `field`."""
    rows = [{key: one, "value": other} for one, other in value.items()] if isinstance(value, Mapping) else value
    if not isinstance(rows, list):
        raise invalid(field, value, _pairs_allowed(key))
    pairs = []
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get(key), str):
            raise invalid(field, row, _pairs_allowed(key))
        pairs.append((row[key], _as_text(field, row.get("value", ""), key)))
    if len({name for name, _ in pairs}) < len(pairs):
        raise invalid(field, [name for name, _ in pairs], "each of them once")
    return tuple(pairs)


def _pairs_allowed(key: str) -> str:
    return f'{{"a": "text"}} or [{{"{key}": "a", "value": "text"}}] in JSON'


def _as_text(field: str, value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise invalid(field, value, _pairs_allowed(key))


def _key(name: str) -> str:
    return f"{FILE}, {name}"


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        # schema_version and tag are often written as numbers.
        value = str(value)
    if not isinstance(value, str):
        raise invalid(_key(key), value, "a text")
    return check_text(_key(key), value)


def _number(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise invalid(_key(key), value, "a whole number")
    return value
