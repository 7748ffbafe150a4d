"""What the control plane tells a worker, as a JSON file: written on one side, read on the other."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

MAIN, ELASTIC_MAIN = "main.py", "elastic-main.py"
# Their models are files that say what is trained.
PROGRAMLESS_FRAMEWORKS = ("Caffe",)


def program_of(folder: Path, *, is_elastic: bool) -> str:
    """The file of a model directory that a training starts, whether it is there or not."""
    return ELASTIC_MAIN if is_elastic and (folder / ELASTIC_MAIN).is_file() else MAIN


@dataclass(frozen=True)
class Spec:
    """Base of the two specifications: one JSON object a file."""

    def write(self, file: Path) -> None:
        """Write to `file`, whole or not at all."""
        # Two processes of this service may come to it at once.
        draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}.draft")
        with draft.open("w", encoding="utf-8") as writer:
            writer.write(json.dumps(asdict(self), indent=1))
            writer.flush()
            os.fsync(writer.fileno())
        draft.replace(file)

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """Read what `write` wrote; TypeError when the fields are not those of this class."""
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class TrainingSpec(Spec):
    """One training. `code` is its own copy of the model directory; `data` maps split names to paths.

    `weights` is a file or folder of initial weights, or empty; `weights_url` is where to fetch them from first.
    `program` is the file of `code` to run, unless `command` (argv) replaces it. `parameters` is what the parameter
    modules of the sdk answer from. `max_workers` is the most that an elastic training is ever given, else 0.
    """

    code: str
    train_dir: str
    weights: str
    data: dict[str, str]
    parameters: dict[str, Any] = field(default_factory=dict)
    framework: str = "PyTorch"
    program: str = "main.py"
    command: list[str] = field(default_factory=list)
    weights_url: str = ""
    sync_mode: str = "SYNC"
    max_workers: int = 0


@dataclass(frozen=True)
class ValidationSpec(Spec):
    """One validation: the program in `code`, the weights in `model`, the records in `input_dir`.

    `dataset_type` is their format; empty: as they look.
    """

    code: str
    model: str
    input_dir: str
    output_dir: str
    label_file: str
    threshold: float
    metrics: list[str]
    framework: str = "PyTorch"
    dataset_type: str = ""
