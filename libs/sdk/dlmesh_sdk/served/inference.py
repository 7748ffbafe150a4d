"""The forward pass of a served model in this process: what inference programs do, and Triton's runner does alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlmesh_sdk.served.base import Served
from dlmesh_sdk.training_loop import find_weights


class Predictor:
    """The model with the weights at `location` (a file, or a folder with final ones), on the GPU where there is one.

    FileNotFoundError when there are none, RuntimeError when they do not fit the model.
    """

    def __init__(self, served: Served, location: str | Path) -> None:
        self.served = served
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = served.build_model()
        module.load_state_dict(torch.load(find_weights(location), map_location="cpu", weights_only=True))
        self.module = module.to(self.device).eval()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Outputs by name, on the CPU, of a batch: tensors or arrays by input name."""
        with torch.inference_mode():
            on_device = {name: torch.as_tensor(value).to(self.device) for name, value in inputs.items()}
            outputs: dict[str, Tensor] = self.served.forward(self.module, on_device)
            return outputs
