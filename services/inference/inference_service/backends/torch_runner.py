"""Serves a PyTorch bundle in Triton's Python backend. Copied into the model repository, so it imports nothing of ours.

Tensors pass as DLPack only: the server's Python stub predates numpy 2 and would, silently, answer zeros through numpy.
"""

from __future__ import annotations

import json
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from torch.utils import dlpack


class TritonPythonModel:
    """One instance of the model, on the device that Triton gives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model and load its weights; what is raised here is what the load is refused with."""
        torch.set_num_threads(1)
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        serving = json.loads((bundle / "serving.json").read_text())
        use_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if use_gpu else "cpu")
        shape = {side: serving[side] for side in ("channels", "height", "width")}
        model = load_program(bundle, args["model_name"]).build_model(len(serving["labels"]), **shape)
        weights = torch.load(bundle / "model_epoch_final.pth", map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
        self.model = model.to(self.device).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton batched with one forward pass."""
        try:
            inputs = [
                dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, "INPUT__0").to_dlpack())
                for request in requests
            ]
            with torch.inference_mode():
                outputs = torch.softmax(self.model(torch.cat(inputs).to(self.device)).float(), 1).cpu()
        except Exception as error:
            refusal = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            return [pb_utils.InferenceResponse(error=refusal) for _ in requests]
        return [
            # Each answer owns its memory: Triton may still read it when the others are gone.
            pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT__0", piece.clone())])
            for piece in outputs.split([len(each) for each in inputs])
        ]


def load_program(bundle: Path, name: str) -> ModuleType:
    """The bundle's model.py, under a name of its own: every bundle has a file called so, and so is this one."""
    sys.path.insert(0, str(bundle))
    specification = util.spec_from_file_location(f"dlmesh_bundle_{name}", bundle / "model.py")
    if specification is None or specification.loader is None:
        raise ImportError(f"{bundle / 'model.py'} is not a Python file")
    program = util.module_from_spec(specification)
    sys.modules[specification.name] = program
    specification.loader.exec_module(program)
    return program
