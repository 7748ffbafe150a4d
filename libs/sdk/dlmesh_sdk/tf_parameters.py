"""What a TensorFlow program asks the platform: where its records are and which hyperparameters its model has.

The answers come from the JSON file that the environment variable DLMESH_PARAMETERS names. TensorFlow is imported by
`getLearningRate` and `getOptimizer` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recordkit.record_files import record_files

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

__all__ = [
    "getBaseLearningRate",
    "getCheckpointInterval",
    "getCheckpointsKept",
    "getEpoch",
    "getHiddenStateSize",
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
DEFAULT_LEARNING_RATE = 0.01
DEFAULT_HIDDEN_STATE_SIZE = 128


def getTrainData(list_files: bool = True) -> Any:
    """The TFRecord files of the training split by their names; without `list_files` the path of the split.

    A split without TFRecord files (the user's own kind of data) gives all its files. ValueError for an LMDB.
    """
    return _data("train", list_files)


def getTestData(list_files: bool = True) -> Any:
    """The TFRecord files of the test split, as `getTrainData`."""
    return _data("test", list_files)


def getValData(list_files: bool = True) -> Any:
    """The TFRecord files of the validation split, as `getTrainData`."""
    return _data("val", list_files)


def getMaxSteps() -> int:
    """Iterations to train: `maxiteration`, else as many as `getEpoch` epochs of the training records take."""
    return int(hyperparameters().get("maxiteration") or 0) or getEpoch() * _steps_per_epoch()


def getEpoch() -> int:
    """Epochs to train: `epoch`, else as many as `maxiteration` iterations begin."""
    given = hyperparameters()
    if epochs := int(given.get("epoch") or 0):
        return epochs
    iterations = int(given.get("maxiteration") or 0)
    return -(-iterations // _steps_per_epoch()) if iterations else DEFAULT_EPOCHS


def getBaseLearningRate() -> float:
    """The learning rate at the beginning, before the policy of the model changes it."""
    return float(hyperparameters().get("learningrate") or DEFAULT_LEARNING_RATE)


def getHiddenStateSize() -> int:
    """Units in the hidden state of a recurrent net, 128 where `hiddenstatesize` is not given."""
    return int(hyperparameters().get("hiddenstatesize") or DEFAULT_HIDDEN_STATE_SIZE)


def getLearningRate(global_step: Any = None) -> Any:
    """The learning rate that the model's hyperparameters describe.

    A number when it is fixed, else a Keras schedule; with `global_step` (a number, tensor or variable) its value there.
    """
    from dlmesh_sdk import tf_solvers

    rate: Any = tf_solvers.build_learning_rate(hyperparameters())
    return rate(global_step) if callable(rate) and global_step is not None else rate


def getOptimizer(learning_rate: Any = None) -> Any:
    """The Keras optimizer that the model's hyperparameters describe.

    `learning_rate` is what `getLearningRate` gave, or any number or schedule; None means that of the model.
    """
    from dlmesh_sdk import tf_solvers

    rate = getLearningRate() if learning_rate is None else learning_rate
    return tf_solvers.build_optimizer(hyperparameters(), rate if callable(rate) else float(rate))


def _data(split: str, list_files: bool) -> Any:
    path = data_path(split)
    if (Path(path) / "data.mdb").exists() or path.endswith(".mdb"):
        raise ValueError(f"{path} is an LMDB, which TensorFlow does not read; import the dataset as TFRecords")
    if not list_files:
        return path
    return [str(file) for file in record_files(Path(path))] or files_below(path)


def _steps_per_epoch() -> int:
    from recordkit.tfrecord import TFRecordFile

    records = sum(len(TFRecordFile(file)) for file in getTrainData())
    return max(1, -(-records // getTrainBatchSize()))
