"""Which frameworks are installed, asked once and without importing them."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from models_service.domain.framework import Framework
from models_service.domain.words import FRAMEWORKS, read_word

# Framework, the package that has to be importable, the distributions that bring it. Elastic engines are added with
# elastic training.
_ENGINES = (
    ("PyTorch", "torch", ("torch",)),
    ("TensorFlow", "tensorflow", ("tensorflow", "tensorflow-cpu")),
    ("Caffe", "caffe", ("caffe",)),
)


@functools.cache
def installed_frameworks() -> tuple[Framework, ...]:
    """The frameworks that workers find; they run in the same interpreter as the services."""
    found = []
    for name, package, distributions in _ENGINES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        version = _version(distributions)
        found.append(
            Framework(
                name=name,
                home=str(Path(spec.origin).parent),
                backend=name,
                accelerator="Native",
                description=f"{name} {version}: one worker, or several under torch.distributed".strip()
                if name == "PyTorch"
                else f"{name} {version}".strip(),
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
