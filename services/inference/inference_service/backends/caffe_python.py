"""Caffe nets in Triton's Python backend: torch modules, by the model.py of their folder or by ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from inference_service.backends.base import Source
from inference_service.backends.torch_python import TorchPythonBackend

PROGRAM = Path(__file__).with_name("caffe_model.py")


class CaffePythonBackend(TorchPythonBackend):
    """Needs the prototxt files of the training, `model_epoch_final.pth` and `serving.json`."""

    def refusal(self, source: Source) -> str:
        if not any(source.code.glob("*solver.prototxt")):
            return "the model has no *solver.prototxt"
        return super().refusal(source)

    def lacks_program(self, source: Source) -> str:
        return ""

    def write(self, source: Source, entry: Path) -> None:
        super().write(source, entry)
        program = entry / "1" / "bundle" / "model.py"
        if not program.is_file():
            shutil.copy2(PROGRAM, program)
