"""Every framework, by the name the contract gives it. Adding one: its file, and its line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from training_service.frameworks.base import Framework

FRAMEWORKS: Mapping[str, str] = {
    "Caffe": "training_service.frameworks.caffe:Caffe",
    "PyTorch": "training_service.frameworks.pytorch:PyTorch",
    "TensorFlow": "training_service.frameworks.tensorflow:TensorFlow",
}


def framework_named(name: str) -> Framework:
    """The framework called `name`; ValueError lists the known."""
    if name not in FRAMEWORKS:
        raise ValueError(f"framework {name!r} is not known; known: {', '.join(FRAMEWORKS)}")
    module, _, cls = FRAMEWORKS[name].partition(":")
    framework: Framework = getattr(importlib.import_module(module), cls)()
    return framework
