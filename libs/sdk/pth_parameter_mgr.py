"""What a PyTorch program asks the platform: where its data is and which hyperparameters its model has.

The answers come from the JSON file that the environment variable DLMESH_PARAMETERS names.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

DEFAULT_BATCH_SIZE = 32
DEFAULT_EPOCHS = 10
DEFAULT_TEST_INTERVAL = 100
DEFAULT_TEST_ITERATION = 10
DEFAULT_CHECKPOINTS_KEPT = 2


@cache
def _read(path: str) -> dict[str, Any]:
    parameters: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return parameters


def _parameters() -> dict[str, Any]:
    path = os.environ.get("DLMESH_PARAMETERS")
    if not path:
        raise RuntimeError(
            "DLMESH_PARAMETERS is not set: the platform sets it; elsewhere point it to a JSON file such as "
            '{"data": {"train": "...", "test": "..."}, "batch_size": 64, "hyperparameter": {"epoch": 3}}'
        )
    return _read(path)


def _hyperparameters() -> dict[str, Any]:
    return _parameters().get("hyperparameter") or {}


def _data(split: str, list_files: bool) -> Any:
    path = (_parameters().get("data") or {}).get(split)
    if not path:
        raise RuntimeError(f"the dataset has no {split} split")
    if not list_files:
        return path
    folder = Path(path)
    return sorted(str(file) for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [path]


def getTrainData(list_files: bool = False) -> Any:
    """Path of the training split; with `list_files` the list of the files in it."""
    return _data("train", list_files)


def getTestData(list_files: bool = False) -> Any:
    """Path of the test split; with `list_files` the list of the files in it."""
    return _data("test", list_files)


def getValData(list_files: bool = False) -> Any:
    """Path of the validation split; with `list_files` the list of the files in it."""
    return _data("val", list_files)


def getTrainBatchSize() -> int:
    """Samples in one optimizer step, over all workers together."""
    return int(_parameters().get("batch_size") or DEFAULT_BATCH_SIZE)


def getTestBatchSize() -> int:
    """Samples in one test batch, over all workers together."""
    return int(_parameters().get("test_batch_size") or getTrainBatchSize())


def getEpoch() -> int:
    """Epochs to train."""
    return int(_hyperparameters().get("epoch") or DEFAULT_EPOCHS)


def getMaxSteps() -> int:
    """Iterations to train at most; 0 when only the epochs count."""
    return int(_hyperparameters().get("maxiteration") or 0)


def getTestInterval() -> int:
    """Iterations between two tests."""
    return int(_parameters().get("test_interval") or DEFAULT_TEST_INTERVAL)


def getTestIteration() -> int:
    """Test batches in one test."""
    return int(_parameters().get("test_iteration") or DEFAULT_TEST_ITERATION)


def getCheckpointInterval() -> int:
    """Iterations between two checkpoints; 0 when time decides."""
    return int(_parameters().get("checkpoint_interval_steps") or 0)


def getCheckpointsKept() -> int:
    """How many checkpoints are kept, the newest."""
    return int(_parameters().get("checkpoints_kept") or DEFAULT_CHECKPOINTS_KEPT)


def getSeed() -> int:
    """Seed of everything random in the program."""
    return int(_parameters().get("seed") or 0)


def getOptimizer(model: nn.Module) -> Optimizer:
    """The torch optimizer that the model's hyperparameters describe."""
    import pth_solvers

    return pth_solvers.build_optimizer(model.parameters(), _hyperparameters())


def getLearningRate(optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
    """The learning rate scheduler of the model's hyperparameters, stepped once an epoch; None for a fixed rate."""
    import pth_solvers

    return pth_solvers.build_scheduler(optimizer, _hyperparameters(), getEpoch())
