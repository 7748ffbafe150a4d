"""The DeepSpeed configuration of a run: what the model's ds_config.json says, completed by the platform."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dlmesh_sdk.wrong_data import UnusableError

DEFAULT_ZERO_STAGE = 1


def build(path: str | Path, *, batch_size: int, world_size: int) -> dict[str, Any]:
    """The final configuration as DeepSpeed takes it.

    `batch_size` counts samples of one optimizer step over all workers. The ZeRO stage is the one in the file, else the
    environment variable DLMESH_ZERO_STAGE, else 1. Batch sizes always come from the platform. ValueError when the
    stage is not 0 to 3 or `batch_size` cannot feed every worker. UnusableError in an elastic training: its workers come
    and go, and the state that they divide cannot be divided again.
    """
    if os.environ.get("DLI_IS_ELASTIC") == "true":
        raise UnusableError(
            "the accelerator Elastic is for programs with FabricModel (elastic-main.py), and this is none; "
            "allowed for it: Single, Native"
        )
    file = Path(path)
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    zero = config.setdefault("zero_optimization", {})
    stage = zero.get("stage", os.environ.get("DLMESH_ZERO_STAGE") or DEFAULT_ZERO_STAGE)
    if str(stage) not in ("0", "1", "2", "3"):
        raise ValueError(f"zero_optimization.stage or DLMESH_ZERO_STAGE: {stage!r} is not valid; allowed: 0, 1, 2, 3")
    zero["stage"] = stage = int(stage)
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    accumulation = int(config.get("gradient_accumulation_steps") or 1)
    if accumulation != 1:
        raise ValueError(f"gradient_accumulation_steps: {accumulation} is not supported; allowed: 1")
    per_worker = -(-batch_size // world_size)
    config |= {
        "train_micro_batch_size_per_gpu": per_worker,
        "gradient_accumulation_steps": 1,
        "train_batch_size": per_worker * world_size,
    }
    # The optimizer is the user's own torch object; DeepSpeed asks for consent when it does not know its class.
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config
