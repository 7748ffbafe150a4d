"""Models: a template's files, a user's settings, and the data they are for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from servicekit.errors import invalid

from models_service.domain.hyperparameters import Hyperparameters

RESERVED_NAMES = ("files", "weightfile")
MAX_BATCH_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Model:
    """`directory` holds the model's own copy of its program files; `uid` never changes and is never used again."""

    uid: str
    name: str
    owner: str
    template_uid: str
    template_name: str
    framework: str
    directory: Path
    created_at: datetime
    description: str = ""
    accelerator: str = "Single"
    type: str = "Training"
    hyperparameters: Hyperparameters = field(default_factory=dict)
    dataset: str = ""
    batch_size: int | None = None
    instance_group_id: str = ""
    instance_group_name: str = ""
    initial_weights: str = ""
    weights_folder: str = ""
    image_dimension: str = ""
    framework_version: str = ""
    distribute_strategy: str = ""


def check_batch_size(value: int) -> int:
    """400 unless `value` is a batch size."""
    if not 1 <= value <= MAX_BATCH_SIZE:
        raise invalid("batchsize", value, "a whole number of at least 1")
    return value
