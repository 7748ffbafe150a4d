"""PyTorch models in Triton's Python backend: the user's build_model and weights behind our runner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from inference_service.backends.base import Backend, ExportError, Serving, Source

RUNNER = Path(__file__).with_name("torch_runner.py")
WEIGHTS = "model_epoch_final.pth"
MAX_BATCH_SIZE = 64
MAX_QUEUE_MICROSECONDS = 0
# KIND_AUTO is one instance on each GPU where there are GPUs, else one on the CPU.
CONFIG = """\
name: {name}
backend: "python"
max_batch_size: {max_batch_size}
input [{{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ {channels}, {height}, {width} ] }}]
output [{{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }}]
dynamic_batching {{ max_queue_delay_microseconds: {queue_microseconds} }}
instance_group [{{ count: 1 kind: KIND_AUTO }}]
"""


class TorchPythonBackend(Backend):
    """Needs `model.py` with build_model and preprocess, `model_epoch_final.pth` and `serving.json`."""

    def write(self, source: Source, entry: Path) -> None:
        serving = Serving.read(source.checkpoints / "serving.json")
        weights = source.checkpoints / WEIGHTS
        if not weights.is_file():
            raise ExportError(f"the training has no {WEIGHTS}")
        if not (source.code / "model.py").is_file():
            raise ExportError("the model has no model.py with build_model and preprocess")
        bundle = entry / "1" / "bundle"
        # A link stays a link: what it points to is not the model's to publish.
        shutil.copytree(source.code, bundle, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.copy2(weights, bundle / WEIGHTS)
        shutil.copy2(source.checkpoints / "serving.json", bundle / "serving.json")
        shutil.copy2(RUNNER, entry / "1" / "model.py")
        lines = [label.replace("\n", " ") for label in serving.labels]
        (entry / "labels.txt").write_text("".join(f"{line}\n" for line in lines))
        (entry / "config.pbtxt").write_text(
            CONFIG.format(
                name=json.dumps(source.name),
                max_batch_size=MAX_BATCH_SIZE,
                queue_microseconds=MAX_QUEUE_MICROSECONDS,
                channels=serving.channels,
                height=serving.height,
                width=serving.width,
                classes=len(serving.labels),
            )
        )
