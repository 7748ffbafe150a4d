"""Which frameworks are installed, asked once and without importing them."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models_service.domain.framework import Framework
from models_service.domain.words import FRAMEWORKS, read_word


@dataclass(frozen=True)
class _Engine:
    """One way to train: what has to be importable for it, the distributions that bring it, and what people read."""

    name: str
    backend: str
    accelerator: str
    packages: Sequence[str]
    distributions: Sequence[str]
    description: str


_TORCH, _TENSORFLOW = ("torch",), ("tensorflow", "tensorflow-cpu")
_ENGINES = (
    _Engine("PyTorch", "PyTorch", "Native", _TORCH, _TORCH, "PyTorch {}: one worker, or several under DeepSpeed"),
    _Engine("edtPyTorch", "PyTorch", "Elastic", _TORCH, _TORCH, "PyTorch {}: FabricModel programs"),
    _Engine(
        "TensorFlow",
        "TensorFlow",
        "Native",
        ("tensorflow",),
        _TENSORFLOW,
        "TensorFlow {}: one worker, or several by TF_CONFIG",
    ),
    _Engine(
        "edtTensorFlow", "TensorFlow", "Elastic", ("tensorflow",), _TENSORFLOW, "TensorFlow {}: Keras under FabricModel"
    ),
    _Engine("Caffe", "Caffe", "Native", ("caffe_nets", "torch"), _TORCH, "Caffe prototxt nets on PyTorch {}"),
)


@functools.cache
def installed_frameworks() -> tuple[Framework, ...]:
    """The frameworks that workers find; they run in the same interpreter as the services."""
    found = []
    for engine in _ENGINES:
        specs = [importlib.util.find_spec(package) for package in engine.packages]
        if any(spec is None or spec.origin is None for spec in specs):
            continue
        version = _version(engine.distributions)
        found.append(
            Framework(
                name=engine.name,
                home=str(Path(str(specs[0] and specs[0].origin)).parent),
                backend=engine.backend,
                accelerator=engine.accelerator,
                description=engine.description.format(version),
                version=version,
            )
        )
    return tuple(found)


def _version(distributions: Sequence[str]) -> str:
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""


def list_frameworks(backend: str | None = None) -> list[Framework]:
    """Installed frameworks, of one `backend` if given; 400 for a backend that nobody knows."""
    wanted = read_word("backend", backend, FRAMEWORKS) if backend else None
    return [framework for framework in installed_frameworks() if wanted in (None, framework.backend)]
