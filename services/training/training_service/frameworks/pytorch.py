"""PyTorch programs, with or without DeepSpeed."""

from __future__ import annotations

from training_service.frameworks.base import Framework


class PyTorch(Framework):
    """Its programs write state dicts; optimizer states beside them are not weights."""

    name = "PyTorch"
    weights = (
        r"model_epoch_final\.pth",
        r"model_epoch_\d+\.pth",
        r"(?!.*optimizer_state)[^.].*\.(pth|pt|safetensors)",
    )
