"""What a backend is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh_sdk import served
from workerkit.spool import open_plain

SERVING_FILE = "serving.json"
# More would be no description of a model.
MAX_SERVING_BYTES = 64 * 1024 * 1024


class ExportError(Exception):
    """The training cannot be served; the text says what is missing."""


@dataclass(frozen=True)
class Source:
    """A finished training on disk: its program, its checkpoints (with serving.json), and the name to serve it under."""

    name: str
    code: Path
    checkpoints: Path


class Backend(ABC):
    """Writes entries of the model repository.

    Contract: `write` fills the empty folder `entry` with `config.pbtxt` and version `1/`, whose `bundle/` has the
    model's program, weights and serving.json. Triton batches. Models of a known task take their tensors, or the
    optional input `ITEM`, BYTES [1], a sample as it is (an encoded picture, a row as a JSON object, a text), which they
    answer with `RESULT`, BYTES [1], the result of `dlmesh_sdk.served.Served.results` as JSON without its sampleId.
    All other models have ITEM and RESULT alone. What the model is probed with is in the configuration
    (`triton.probes`). A backend reads the source only, raises ExportError when something is missing, and imports no
    deep-learning framework.
    """

    @abstractmethod
    def refusal(self, source: Source) -> str:
        """Why it cannot serve this training, in one line; empty when it can."""

    @abstractmethod
    def write(self, source: Source, entry: Path) -> None:
        """Fill `entry`; ExportError when there is a refusal."""


def read_serving(checkpoints: Path) -> dict[str, Any]:
    """serving.json of a training; ExportError when it is missing or is no JSON object."""
    try:
        # Programs of users wrote it: a pipe would be waited for.
        with open_plain((checkpoints / SERVING_FILE).resolve()) as stream:
            content = stream.read(MAX_SERVING_BYTES + 1)
        if len(content) > MAX_SERVING_BYTES:
            raise ExportError(f"{SERVING_FILE} of the training has more than {MAX_SERVING_BYTES} bytes")
        known = json.loads(content)
    except FileNotFoundError as error:
        raise ExportError(f"the training wrote no {SERVING_FILE} into --train_dir") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(f"{SERVING_FILE} of the training is not usable: {error!r}") from error
    if not isinstance(known, dict):
        raise ExportError(f"{SERVING_FILE} of the training is not usable: a JSON object is needed")
    return known


def read_facts(checkpoints: Path) -> served.Facts:
    """Task, labels and tensors by serving.json; ExportError says what is missing."""
    serving = read_serving(checkpoints)
    try:
        return served.describe(serving)
    except ValueError as error:
        raise ExportError(f"{SERVING_FILE} of the training is not usable: {error}") from error
