"""FabricModel for Keras models: elastic training with a fixed global batch, on any number of workers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gang
import keras
import numpy as np
import run_parameters
import tensorflow as tf
from fabric_options import FabricOptions, Sizing
from keras_training import KerasTask, Listener, Plan, stack, train

DEFAULT_TRAIN_DIR = "model/train"
# Keras' own data sets hand out whole batches, samples are taken in any order: so many batches stay at hand.
CACHED_BATCHES = 64


class KerasFabric:
    """Trains the Keras model of `options`. A model that is compiled keeps what `options` does not name; one that is not
    needs a loss function and an optimizer (objects, or Keras' names for them).

    ValueError names what Keras models have no use for: own step functions (override `compute_loss` of the model),
    `save_to_onnx`, and the gradient mode ASYNC.
    """

    def __init__(self, options: FabricOptions) -> None:
        for name, value in (
            ("fn_step_train", options.step_function),
            ("fn_test", options.test_function),
            ("save_to_onnx", options.save_to_onnx),
        ):
            if value:
                raise ValueError(f"{name}: {value!r} is for PyTorch models; a Keras model takes none")
        if (mode := os.environ.get("DLMESH_SYNC_MODE") or "SYNC") != "SYNC":
            raise ValueError(f"syncMode: {mode!r} is for PyTorch models; allowed for Keras models: SYNC")
        self.options = options
        keras.saving.get_custom_objects().update(options.keras_custom_objects)
        _compile(options)

    def train(self, sizing: Sizing) -> None:
        """Train to the end and write the weights into DLMESH_TRAIN_DIR (else model/train), from its newest checkpoint
        if there is one; SystemExit(143) after SIGTERM."""
        options, on_platform = self.options, bool(os.environ.get("DLMESH_PARAMETERS"))
        seed = run_parameters.getSeed() if on_platform else 0
        workers = gang.join(seed, computes=False)
        # All workers get the same data in the same order, so that their parts are parts of one batch.
        keras.utils.set_random_seed(seed)
        train_data, test_data = map(as_samples, options.get_datasets())
        plan = Plan(
            epochs=sizing.epochs,
            batch_size=sizing.global_batch_size,
            test_epochs=sizing.validation_epochs,
            weights_epochs=sizing.checkpoint_epochs,
            checkpoint_interval=run_parameters.getCheckpointInterval() if on_platform else 0,
            checkpoints_kept=(
                run_parameters.getCheckpointsKept() if on_platform else run_parameters.DEFAULT_CHECKPOINTS_KEPT
            ),
            seed=seed,
        )
        folder = Path(os.environ.get("DLMESH_TRAIN_DIR") or DEFAULT_TRAIN_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        loggers = [options.worker_logger] + ([options.driver_logger] if workers.is_first else [])
        own = [callback for callback in options.callbacks if isinstance(callback, keras.callbacks.Callback)]
        others = [callback for callback in options.callbacks if callback not in own]
        listener = _Loggers([logger for logger in loggers if logger], workers)
        task = KerasTask(
            options.model,
            train_data,
            test_data,
            callbacks=[*own, _Hooks([*others, *listener.loggers], sizing.epochs)],
            collate=_to_arrays(options.collate) if options.collate else stack,
        )
        train(task, workers, folder, plan=plan, listener=listener)


def as_samples(data: Any) -> Any:
    """`data` with a sample at each index: map-style datasets as they are, pairs of arrays, and Keras' data sets of
    batches (generator flows). TypeError for what has no indices, such as a tf.data.Dataset."""
    if isinstance(data, keras.utils.PyDataset):
        return _Flow(data)
    if isinstance(data, tuple) and len(data) == 2 and len(data[0]) == len(data[1]):
        return _Pairs(*data)
    if isinstance(data, tf.data.Dataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(
            f"a dataset of {type(data).__name__} has no samples by index; the dataset function returns (train, test), "
            "each with __getitem__ and __len__, a pair of arrays, or a Keras generator flow"
        )
    return data


class _Pairs:
    def __init__(self, inputs: Any, targets: Any) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._inputs[index], self._targets[index]


class _Flow:
    """Samples of a data set of batches, all but the last of one size."""

    def __init__(self, batches: Any) -> None:
        self._batch = lru_cache(CACHED_BATCHES)(batches.__getitem__)
        self._size = len(self._batch(0)[1])
        self._samples = (len(batches) - 1) * self._size + len(self._batch(len(batches) - 1)[1])

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        inputs, targets = self._batch(index // self._size)[:2]
        place = index % self._size
        return keras.tree.map_structure(lambda values: values[place], inputs), targets[place]


class _Loggers(Listener):
    """Tells loggers of either published form about steps and tests."""

    def __init__(self, loggers: Sequence[Any], workers: gang.Gang) -> None:
        self.loggers, self._workers = loggers, workers

    def trained(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self._log("log_train_metrics", values, step, epoch)

    def tested(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self._log("log_test_metrics", values, step, epoch)

    def _log(self, name: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        for logger in self.loggers:
            method = getattr(logger, name, None)
            if method is None:
                continue
            names = inspect.signature(method).parameters
            if "metrics" in names:
                more = {"workers": self._workers.world_size} if "workers" in names else {}
                method(dict(values), step, epoch, **more)
            else:
                # Accuracy in percent, as the older form has it.
                accuracy = next((value for key, value in values.items() if "acc" in key), 0.0)
                method(values["loss"], 100.0 * accuracy, step, self._workers.rank)


class _Hooks(keras.callbacks.Callback):
    """Passes Keras' events on to callbacks that are no Keras callbacks."""

    def __init__(self, callbacks: Sequence[Any], epochs: int) -> None:
        super().__init__()
        self._callbacks, self._epochs = callbacks, epochs

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        for callback in self._callbacks:
            callback.model = self.model
            callback.params = {"epochs": self._epochs, "optimizer": self.model.optimizer}
        self._call("on_train_begin")

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self._call("on_train_end")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._call("on_epoch_begin", epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._call("on_epoch_end", epoch, self.model.save)

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            if method := getattr(callback, name, None):
                method(*arguments[: len(inspect.signature(method).parameters)])


def _compile(options: FabricOptions) -> None:
    model = options.model
    if model.compiled and options.loss_function is None and options.optimizer is None and not options.metrics:
        return
    loss = options.loss_function if options.loss_function is not None else getattr(model, "loss", None)
    optimizer = options.optimizer if options.optimizer is not None else getattr(model, "optimizer", None)
    for name, value in (("loss_function", loss), ("optimizer", optimizer)):
        if value is None:
            raise ValueError(
                f"{name}: None is not enough for a model that is not compiled; an object or its Keras name"
            )
    model.compile(optimizer=optimizer, loss=loss, metrics=list(options.metrics) or ["accuracy"])


def _to_arrays(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda samples: keras.tree.map_structure(np.asarray, tuple(collate(samples)))
