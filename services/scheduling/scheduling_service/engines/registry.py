"""Engines by name. Adding one is a package and a line here."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import Any

from servicekit.errors import invalid

from scheduling_service.engines.base import Engine

ENGINES = MappingProxyType(
    {
        "local": "scheduling_service.engines.local.engine:LocalEngine",
        "spark": "scheduling_service.engines.spark.engine:SparkEngine",
    }
)


def make_engine(name: str, **options: Any) -> Engine:
    """The engine called `name`; 400 listing the known ones otherwise."""
    if name not in ENGINES:
        raise invalid("engine", name, ENGINES)
    module, class_name = ENGINES[name].split(":")
    engine: Engine = getattr(importlib.import_module(module), class_name)(**options)
    return engine
