"""Serves a PyTorch bundle in Triton's Python backend. Copied into the model repository.

Tensors pass as DLPack only: the server's Python stub predates numpy 2 and would, silently, answer zeros through numpy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bytes_tensors  # type: ignore[import-not-found]
import numpy as np
import torch
from dlmesh_sdk import served
from model_room import ModelRoom  # type: ignore[import-not-found]
from served_runner import ServedRunner  # type: ignore[import-not-found]
from torch.nn.utils.rnn import pad_sequence
from torch.utils import dlpack

bytes_tensors.mend()

# Of one pass on CPUs. With more at once what the layers make of it fits no cache, and comes anew from the operating
# system each time; with less, threads cost more than they bring.
MANY_NUMBERS = 1_000_000
Batch = dict[str, torch.Tensor]


class TritonPythonModel(ServedRunner):
    """One instance of the model, on the device that Triton gives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model and load its weights; what is raised here is what the load is refused with."""
        torch.set_num_threads(1)
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self.room = ModelRoom(bundle, args["model_name"], args["model_version"])
        self.room.enter()
        use_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if use_gpu else "cpu")
        self.served = served.load(bundle)
        module = self.served.build_model()
        weights = torch.load(bundle / "model_epoch_final.pth", map_location="cpu", weights_only=True)
        module.load_state_dict(weights)
        self.module = module.to(self.device).eval()

    def finalize(self) -> None:
        """It is unloaded."""
        self.room.leave()

    def take(self, tensor: Any) -> torch.Tensor:
        return dlpack.from_dlpack(tensor.to_dlpack())

    def join(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of tokens, and of objects that were found, are filled up to the longest."""
        if len({tensor.shape[1:] for tensor in arrays}) == 1:
            return torch.cat(list(arrays))
        return pad_sequence([row for tensor in arrays for row in tensor], batch_first=True)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Batch:
        count, numbers = len(next(iter(inputs.values()))), sum(tensor.numel() for tensor in inputs.values())
        with torch.inference_mode():
            if self.device.type != "cpu":
                return self.served.forward(self.module, {name: each.to(self.device) for name, each in inputs.items()})
            torch.set_num_threads(len(os.sched_getaffinity(0)) if numbers >= MANY_NUMBERS else 1)
            passes = min(count, math.ceil(numbers / MANY_NUMBERS))
            if passes <= 1:
                return self.served.forward(self.module, inputs)
            parts = [self.served.forward(self.module, part) for part in _parted(inputs, math.ceil(count / passes))]
            return {name: self.join([part[name] for part in parts]) for name in parts[0]}

    def copy(self, array: torch.Tensor) -> torch.Tensor:
        return array.clone()

    def forward_arrays(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        outputs = self.forward({name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def _parted(inputs: Mapping[str, torch.Tensor], rows: int) -> Iterator[Batch]:
    for start in range(0, len(next(iter(inputs.values()))), rows):
        yield {name: tensor[start : start + rows] for name, tensor in inputs.items()}
