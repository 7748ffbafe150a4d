"""What a model tells the programs of its trials, which may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workerkit.spool import open_plain_below

from training_service.domain.trials import MAX_CONFIG_BYTES

# Where programs of trials find their parameters, in their working directory.
CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The parameters in the folder of a model; none where there is no plain file of a JSON object."""
    try:
        with open_plain_below(folder, folder / CONFIG) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        config = json.loads(content, parse_constant=_refuse) if len(content) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
