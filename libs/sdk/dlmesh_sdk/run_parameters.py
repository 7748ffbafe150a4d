"""What the platform tells a run, for the parameter modules of every framework.

The answers come from the JSON file that the environment variable DLMESH_PARAMETERS names; it is read once a process.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

DEFAULT_BATCH_SIZE = 32
DEFAULT_TEST_INTERVAL = 100
DEFAULT_TEST_ITERATION = 10
DEFAULT_CHECKPOINTS_KEPT = 2


@cache
def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def parameters() -> dict[str, Any]:
    """Everything in the file; RuntimeError that says how to write one when there is none."""
    path = os.environ.get("DLMESH_PARAMETERS")
    if not path:
        raise RuntimeError(
            "DLMESH_PARAMETERS is not set: the platform sets it; elsewhere point it to a JSON file such as "
            '{"data": {"train": "...", "test": "..."}, "batch_size": 64, "hyperparameter": {"epoch": 3}}'
        )
    return _read(path)


def hyperparameters() -> dict[str, Any]:
    """The model's hyperparameters by their names in the contract; those that were not given are absent."""
    return parameters().get("hyperparameter") or {}


def data_path(split: str) -> str:
    """Where the records of `split` (train, test, val) lie; RuntimeError when the dataset has no such split."""
    path = (parameters().get("data") or {}).get(split)
    if not path:
        raise RuntimeError(f"the dataset has no {split} split")
    return str(path)


def files_below(path: str) -> list[str]:
    """The file itself, or all files of a folder, by their names."""
    folder = Path(path)
    return sorted(str(file) for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [path]


def getTrainBatchSize() -> int:
    """Samples in one optimizer step, over all workers together."""
    return int(parameters().get("batch_size") or DEFAULT_BATCH_SIZE)


def getTestBatchSize() -> int:
    """Samples in one test batch, over all workers together."""
    return int(parameters().get("test_batch_size") or getTrainBatchSize())


def getTestInterval() -> int:
    """Iterations between two tests."""
    return int(parameters().get("test_interval") or DEFAULT_TEST_INTERVAL)


def getTestIteration() -> int:
    """Test batches in one test."""
    return int(parameters().get("test_iteration") or DEFAULT_TEST_ITERATION)


def getCheckpointInterval() -> int:
    """Iterations between two checkpoints; 0 when time decides."""
    return int(parameters().get("checkpoint_interval_steps") or 0)


def getCheckpointsKept() -> int:
    """How many checkpoints are kept, the newest."""
    return int(parameters().get("checkpoints_kept") or DEFAULT_CHECKPOINTS_KEPT)


def getSeed() -> int:
    """Seed of everything random in the program."""
    return int(parameters().get("seed") or 0)
