"""PyTorch models in Triton's Python backend: the user's build_model and weights behind our runner."""

from __future__ import annotations

from pathlib import Path

from inference_service.backends.base import Backend, ExportError, Source, read_facts
from inference_service.backends.entries import write_served

RUNNER = Path(__file__).with_name("torch_runner.py")
WEIGHTS = "model_epoch_final.pth"


class TorchPythonBackend(Backend):
    """Needs `model.py` as `dlmesh_sdk.served` has it for the task, `model_epoch_final.pth` and `serving.json`."""

    def refusal(self, source: Source) -> str:
        try:
            read_facts(source.checkpoints)
        except ExportError as error:
            return str(error)
        if not (source.checkpoints / WEIGHTS).is_file():
            return f"the training has no {WEIGHTS}"
        return self.lacks_program(source)

    def lacks_program(self, source: Source) -> str:
        """As `refusal`, of the code alone."""
        has_program = (source.code / "model.py").is_file()
        return "" if has_program else "the model has no model.py with build_model and preprocess"

    def write(self, source: Source, entry: Path) -> None:
        if reason := self.refusal(source):
            raise ExportError(reason)
        write_served(source, entry, RUNNER, WEIGHTS)
