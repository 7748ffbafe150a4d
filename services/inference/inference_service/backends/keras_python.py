"""Keras models in Triton's Python backend: the user's build_model and weights behind our runner, on TensorFlow."""

from __future__ import annotations

from pathlib import Path

from inference_service.backends.base import Backend, ExportError, Source, read_facts
from inference_service.backends.entries import write_served

RUNNER = Path(__file__).with_name("keras_runner.py")
WEIGHTS = "model_epoch_final.keras"
TASKS = ("classification", "vector")


class KerasPythonBackend(Backend):
    """Needs `model.py` with build_model and preprocess, `model_epoch_final.keras` and `serving.json`. The channels of
    `INPUT__0` are its last dimension."""

    def refusal(self, source: Source) -> str:
        try:
            facts = read_facts(source.checkpoints)
        except ExportError as error:
            return str(error)
        if facts.task not in TASKS:
            return f"the task of the training is {facts.task}; of Keras models are served: {', '.join(TASKS)}"
        if not (source.checkpoints / WEIGHTS).is_file():
            return f"the training has no {WEIGHTS}"
        if not (source.code / "model.py").is_file():
            return "the model has no model.py with build_model and preprocess"
        return ""

    def write(self, source: Source, entry: Path) -> None:
        if reason := self.refusal(source):
            raise ExportError(reason)
        write_served(source, entry, RUNNER, WEIGHTS)
