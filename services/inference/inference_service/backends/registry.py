"""Backends by the framework of the training; the first of a framework's that can serve a training does."""

from __future__ import annotations

import importlib

from inference_service.backends.base import Backend, ExportError, Source

BACKENDS = {
    "PyTorch": (
        "inference_service.backends.torch_python:TorchPythonBackend",
        "inference_service.backends.program:ProgramBackend",
    ),
    "Caffe": ("inference_service.backends.caffe_python:CaffePythonBackend",),
    "TensorFlow": (
        "inference_service.backends.keras_python:KerasPythonBackend",
        "inference_service.backends.program:TensorFlowProgramBackend",
    ),
}


def make_backends(framework: str) -> list[Backend]:
    """In their order; KeyError when nothing serves the framework."""
    found: list[Backend] = []
    for place in BACKENDS[framework]:
        module, _, name = place.partition(":")
        found.append(getattr(importlib.import_module(module), name)())
    return found


def choose_backend(framework: str, source: Source) -> Backend:
    """The one that serves this training; ExportError with the reasons of all when none does."""
    reasons = []
    for backend in make_backends(framework):
        reason = backend.refusal(source)
        if not reason:
            return backend
        reasons.append(reason)
    raise ExportError("; ".join(dict.fromkeys(reasons)))
