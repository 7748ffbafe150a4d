"""Deep learning frameworks that trainings can run with here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Framework:
    """An installed training engine; `home` is the folder of its package."""

    name: str
    home: str
    backend: str
    accelerator: str
    description: str
    version: str = ""
