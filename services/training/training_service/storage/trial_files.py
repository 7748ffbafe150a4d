"""What a model tells the programs of its trials, and what these write for their study. Both may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workerkit.spool import open_plain_below

from training_service.domain.trials import MAX_CONFIG_BYTES, TrialResults

# Where programs of trials find their parameters, in their working directory.
CONFIG = "config.json"
RESULTS_FILE = "val_dict_list.json"
# A long list of steps.
MAX_RESULTS_BYTES = 8 * 1024 * 1024


def read_config(folder: Path) -> dict[str, Any]:
    """The parameters in the folder of a model; none where there is no plain file of a JSON object."""
    try:
        with open_plain_below(folder, folder / CONFIG) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        config = json.loads(content, parse_constant=_refuse) if len(content) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def read_results(folder: Path) -> TrialResults:
    """The results in the folder of a run, which is its program's $RESULT_DIR."""
    try:
        file = open_plain_below(folder, folder / RESULTS_FILE)
    except OSError:
        return TrialResults()
    with file:
        # One byte further: it may grow while it is read.
        content = file.read(MAX_RESULTS_BYTES + 1)
    if len(content) > MAX_RESULTS_BYTES:
        return TrialResults(error=f"{RESULTS_FILE} is larger than {MAX_RESULTS_BYTES} bytes")
    return TrialResults(content.decode("utf-8", "replace"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
