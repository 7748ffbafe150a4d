"""Frameworks by name. Adding one is a file and a line here; a plug-in needs neither."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from scheduling_service.exec_frameworks.base import ExecFramework

FRAMEWORKS = MappingProxyType(
    {
        "PyTorch": "scheduling_service.exec_frameworks.pytorch:PyTorch",
        "distPyTorch": "scheduling_service.exec_frameworks.dist_pytorch:DistPyTorch",
        "edtPyTorch": "scheduling_service.exec_frameworks.edt_pytorch:EdtPyTorch",
        "tensorflow": "scheduling_service.exec_frameworks.tensorflow:TensorFlow",
        "disttensorflow": "scheduling_service.exec_frameworks.dist_tensorflow:DistTensorFlow",
        "edtTensorflow": "scheduling_service.exec_frameworks.edt_tensorflow:EdtTensorFlow",
        "keras": "scheduling_service.exec_frameworks.keras:Keras",
        "edtKeras": "scheduling_service.exec_frameworks.edt_tensorflow:EdtKeras",
    }
)


def make_framework(name: str) -> ExecFramework:
    """The built-in framework called `name`; KeyError for any other."""
    module, class_name = FRAMEWORKS[name].split(":")
    framework: ExecFramework = getattr(importlib.import_module(module), class_name)()
    return framework
