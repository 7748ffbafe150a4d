"""What a backend is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ExportError(Exception):
    """The training cannot be served; the text says what is missing."""


@dataclass(frozen=True)
class Source:
    """A finished training on disk: its program, its checkpoints (with serving.json), and the name to serve it under."""

    name: str
    code: Path
    checkpoints: Path


@dataclass(frozen=True)
class Serving:
    """What serving.json says: the input's shape and the labels in the order of the outputs."""

    labels: list[str]
    channels: int
    height: int
    width: int

    @classmethod
    def lacks(cls, file: Path) -> list[str]:
        """Which of its fields the file does not have: those of other models than classifiers of pictures."""
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):
            return []
        return [field for field in cls.__dataclass_fields__ if field not in known] if isinstance(known, dict) else []

    @classmethod
    def read(cls, file: Path) -> Serving:
        """ExportError when it is missing or does not say all."""
        try:
            known: dict[str, Any] = json.loads(file.read_text())
            sides = {side: int(known[side]) for side in ("channels", "height", "width")}
            labels = [str(label) for label in known["labels"]]
        except FileNotFoundError as error:
            raise ExportError(f"the training wrote no {file.name} into --train_dir") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{file.name} of the training is not usable: {error!r}") from error
        if not labels or min(sides.values()) < 1:
            raise ExportError(f"{file.name} of the training names no labels or an empty input")
        return cls(labels, **sides)


class Backend(ABC):
    """Writes entries of the model repository.

    Contract: `write` fills the empty folder `entry` with `config.pbtxt` and version `1/`; input `INPUT__0` is FP32
    [channels, height, width] as the model's own `preprocess` makes it, output `OUTPUT__0` FP32 [labels] are
    probabilities; Triton batches. The bundle with the model's program, weights and serving.json is `1/bundle`. It
    reads the source only, raises ExportError when something is missing, and imports no deep-learning framework.
    """

    @abstractmethod
    def write(self, source: Source, entry: Path) -> None:
        """Fill `entry`."""
