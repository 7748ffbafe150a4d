"""Backends by the framework of the training."""

from __future__ import annotations

import importlib

from inference_service.backends.base import Backend

BACKENDS = {
    "PyTorch": "inference_service.backends.torch_python:TorchPythonBackend",
}


def make_backend(framework: str) -> Backend:
    """KeyError when nothing serves the framework."""
    module, _, name = BACKENDS[framework].partition(":")
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend
