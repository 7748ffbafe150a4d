"""Serves a Keras bundle in Triton's Python backend. Copied into the model repository.

Tensors pass as DLPack only, as in the runner of torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before TensorFlow is imported: instances share the machine, and a GPU.
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_CPP_MIN_LOG_LEVEL": "1"}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import bytes_tensors  # type: ignore[import-not-found]
import numpy as np
from dlmesh_sdk import served
from model_room import ModelRoom  # type: ignore[import-not-found]
from served_runner import ServedRunner  # type: ignore[import-not-found]

bytes_tensors.mend()

Rows = np.ndarray[Any, Any]


class TritonPythonModel(ServedRunner):
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model and load its weights; what is raised here is what the load is refused with."""
        import keras
        import tensorflow as tf

        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self.room = ModelRoom(bundle, args["model_name"], args["model_version"])
        self.room.enter()
        self.served = served.load(bundle)
        model = self.served.build_model()
        model.load_weights(bundle / "model_epoch_final.keras")
        # As the template's inference.py: build_model answers logits, unless the net itself ends with a softmax.
        ends_with_softmax = getattr(getattr(model.layers[-1], "activation", None), "__name__", "") == "softmax"
        is_logits = self.served.task == "classification" and not ends_with_softmax
        [tensor] = served.describe(self.served.serving).inputs
        place = "GPU" if args["model_instance_kind"] == "GPU" and tf.config.list_physical_devices("GPU") else "CPU"
        self.device = tf.device(f"/{place}:{args['model_instance_device_id'] if place == 'GPU' else 0}")

        @tf.function(input_signature=[tf.TensorSpec([None, *(side if side > 0 else None for side in tensor.shape)])])
        def call(inputs: Any) -> Any:
            outputs = keras.ops.cast(model(inputs, training=False), "float32")
            return keras.ops.softmax(outputs) if is_logits else outputs

        self.call = call

    def finalize(self) -> None:
        """It is unloaded."""
        self.room.leave()

    def take(self, tensor: Any) -> Rows:
        return np.from_dlpack(tensor)

    def join(self, arrays: Sequence[Rows]) -> Rows:
        return np.concatenate(list(arrays))

    def forward(self, inputs: Mapping[str, Rows]) -> dict[str, Rows]:
        with self.device:
            return {"OUTPUT__0": np.ascontiguousarray(self.call(inputs["INPUT__0"]).numpy(), np.float32)}

    def copy(self, array: Rows) -> Rows:
        return array.copy()

    def forward_arrays(self, inputs: Mapping[str, Rows]) -> dict[str, Rows]:
        return self.forward(inputs)
