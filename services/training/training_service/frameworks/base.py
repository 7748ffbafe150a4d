"""What a framework has to know: how its programs are trained and asked, and which of their files are weights."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.worker.program import run_program

_NUMBER = re.compile(r"\d+")


class Framework(ABC):
    """One framework; made anew in every process that needs it.

    Most run the programs of the model directory, main.py and inference.py, in this process. A framework whose models
    are not programs overrides `train` and `infer`.
    """

    name: ClassVar[str]
    # Regular expressions for the whole names of weight files (or folders), the best kind first. Of several files of a
    # kind the one with the highest number in its name is the best.
    weights: ClassVar[Sequence[str]]

    def train(self, spec: TrainingSpec) -> None:
        """Run one rank of a training to its end; SystemExit with the program's code when it fails or was stopped.

        The environment says everything about the gang and the run; the working directory is not yet the program's.
        """
        run_program(spec.code, spec.program, ["--train_dir", spec.train_dir, "--weights", spec.weights])

    def infer(self, spec: ValidationSpec, output_file: str) -> None:
        """Predict the records in `spec.input_dir` and write `output_file`, with the truth, into `spec.output_dir`."""
        options = {
            "--model": spec.model,
            "--input_dir": spec.input_dir,
            "--output_dir": spec.output_dir,
            "--output_file": output_file,
            "--prob_thresh": str(spec.threshold),
            "--validate": "true",
            "--label_file": spec.label_file,
        }
        run_program(spec.code, "inference.py", [part for option in options.items() for part in option])

    def weight_file(self, folder: Path) -> str | None:
        """Name of the best weights in `folder`; None when there are none (yet)."""
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        for pattern in self.weights:
            if found := [name for name in names if re.fullmatch(pattern, name)]:
                return max(found, key=lambda name: ([int(number) for number in _NUMBER.findall(name)], name))
        return None
