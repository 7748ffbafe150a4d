"""Serves a Keras bundle in Triton's Python backend. Copied into the model repository.

What Triton batched is answered with one call of the model. Tensors pass as DLPack only, as in the runner of torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before TensorFlow is imported: instances share the machine, and a GPU.
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_CPP_MIN_LOG_LEVEL": "1"}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import bytes_tensors  # type: ignore[import-not-found]
import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from dlmesh_sdk import served
from model_room import ModelRoom  # type: ignore[import-not-found]

bytes_tensors.mend()

Rows = np.ndarray[Any, Any]


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model and load its weights; what is raised here is what the load is refused with."""
        import keras
        import tensorflow as tf

        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self.room = ModelRoom(bundle, f"{args['model_name']}-{args['model_version']}")
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

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer to each request, or the words of its own failure: others of its batch are answered."""
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))]

    def finalize(self) -> None:
        """It is unloaded."""
        self.room.leave()

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        given = [{tensor.name(): tensor for tensor in request.inputs()} for request in requests]
        items = {
            place: bytes_tensors.read(requests[place], "ITEM") for place, each in enumerate(given) if "ITEM" in each
        }
        encoded = self.served.encode(
            [self.served.item(item, f"{place}:{row}") for place, each in items.items() for row, item in enumerate(each)]
        )
        tensors = {place: _array(each) for place, each in enumerate(given) if place not in items}
        parts = [*tensors.values(), *encoded.inputs.values()]
        rows = self._call(np.concatenate(parts)) if parts else np.zeros((0, 0), np.float32)
        answers: dict[int, Any] = {}
        start = 0
        for place, tensor in tensors.items():
            # Each answer owns its memory: Triton may still read it when the others are gone.
            piece = rows[start : start + len(tensor)].copy()
            start += len(tensor)
            answers[place] = pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT__0", piece)])
        results = iter(self.served.results(encoded, {"OUTPUT__0": rows[start:]}))
        for place, each in items.items():
            texts = [_text(next(results)) for _ in each]
            answers[place] = pb_utils.InferenceResponse([bytes_tensors.make("RESULT", texts)])
        return [answers[place] for place in range(len(requests))]

    def _call(self, inputs: Rows) -> Rows:
        with self.device:
            rows: Rows = np.ascontiguousarray(self.call(inputs).numpy(), np.float32)
        return rows


def _array(given: Mapping[str, Any]) -> Rows:
    if "INPUT__0" not in given:
        raise ValueError("input INPUT__0 is missing: needed is it or ITEM")
    return np.from_dlpack(given["INPUT__0"])


def _text(result: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in result.items() if name != "sampleId"}, allow_nan=False).encode()
