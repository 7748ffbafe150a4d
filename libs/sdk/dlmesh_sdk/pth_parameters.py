"""What a PyTorch program asks the platform: where its data is and which hyperparameters its model has.

The answers come from the JSON file that the environment variable DLMESH_PARAMETERS names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlmesh_sdk.run_parameters import (
    data_path,
    files_below,
    getCheckpointInterval,
    getCheckpointsKept,
    getSeed,
    getTestBatchSize,
    getTestInterval,
    getTestIteration,
    getTrainBatchSize,
    hyperparameters,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = [
    "getCheckpointInterval",
    "getCheckpointsKept",
    "getEpoch",
    "getLearningRate",
    "getMaxSteps",
    "getOptimizer",
    "getSeed",
    "getTestBatchSize",
    "getTestData",
    "getTestInterval",
    "getTestIteration",
    "getTrainBatchSize",
    "getTrainData",
    "getValData",
]

DEFAULT_EPOCHS = 10


def _data(split: str, list_files: bool) -> Any:
    path = data_path(split)
    return files_below(path) if list_files else path


def getTrainData(list_files: bool = False) -> Any:
    """Path of the training split; with `list_files` the list of the files in it."""
    return _data("train", list_files)


def getTestData(list_files: bool = False) -> Any:
    """Path of the test split; with `list_files` the list of the files in it."""
    return _data("test", list_files)


def getValData(list_files: bool = False) -> Any:
    """Path of the validation split; with `list_files` the list of the files in it."""
    return _data("val", list_files)


def getEpoch() -> int:
    """Epochs to train."""
    return int(hyperparameters().get("epoch") or DEFAULT_EPOCHS)


def getMaxSteps() -> int:
    """Iterations to train at most; 0 when only the epochs count."""
    return int(hyperparameters().get("maxiteration") or 0)


def getOptimizer(model: nn.Module) -> Optimizer:
    """The torch optimizer that the model's hyperparameters describe."""
    from dlmesh_sdk import pth_solvers

    return pth_solvers.build_optimizer(model.parameters(), hyperparameters())


def getLearningRate(optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
    """The learning rate scheduler of the model's hyperparameters, stepped once an epoch; None for a fixed rate."""
    from dlmesh_sdk import pth_solvers

    return pth_solvers.build_scheduler(optimizer, hyperparameters(), getEpoch())
