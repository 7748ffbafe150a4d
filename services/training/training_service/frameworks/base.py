"""What a framework has to know: how its programs are trained and asked, and which of their files are weights."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from workerkit.program import run_program

from training_service.domain.specs import TrainingSpec, ValidationSpec

_NUMBER = re.compile(r"\d+")


class Framework(ABC):
    """One framework; made anew in every process that needs it.

    Most run the programs of the model directory, main.py and inference.py, in this process. A framework whose models
    are not programs overrides `train` and `infer`.
    """

    name: ClassVar[str]
    # Regular expressions for the whole names of weight files, the best kind first. Of several files of a kind the one
    # with the highest number in its name is the best. `weight_folders` are those that may be folders.
    weights: ClassVar[Sequence[str]]
    weight_folders: ClassVar[Sequence[str]] = ()
    # The file of a model directory that `infer` needs; empty for none.
    inference_program: ClassVar[str] = "inference.py"

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
        run_program(spec.code, self.inference_program, [part for option in options.items() for part in option])

    def weight_file(self, folder: Path) -> str | None:
        """Name of the best weights in `folder`; None when there are none (yet)."""
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        for pattern in self.weights:
            found = [name for name in names if re.fullmatch(pattern, name) and self._holds_weights(folder / name)]
            if found:
                return max(found, key=lambda name: ([int(number) for number in _NUMBER.findall(name)], name))
        return None

    def _holds_weights(self, path: Path) -> bool:
        """False for what is empty, and for what cannot be read: pipes, and links out of the folder."""
        try:
            target = path.resolve(strict=True)
            if not target.is_relative_to(path.parent.resolve()):
                return False
            if target.is_dir():
                return path.name in self.weight_folders and any(target.iterdir())
            return target.is_file() and target.stat().st_size > 0
        except (OSError, RuntimeError):
            return False
