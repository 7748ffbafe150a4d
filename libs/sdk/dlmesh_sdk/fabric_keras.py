"""FabricModel for Keras models: elastic training with a fixed global batch, on any number of workers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlmesh_sdk import gang, monitor, run_parameters
from dlmesh_sdk.fabric_loggers import Loggers, call, made
from dlmesh_sdk.fabric_options import FabricOptions, Sizing, train_folder
from dlmesh_sdk.fabric_training import initial_weights
from dlmesh_sdk.keras_training import KerasTask, Listener, Plan, stack, train, write_weights
from dlmesh_sdk.program_logs import say

# Keras' own data sets hand out whole batches, samples are taken in any order: so many batches stay at hand.
CACHED_BATCHES = 64


class KerasFabric:
    """Trains the Keras model of `options`. A model that is compiled keeps what `options` does not name; one that is not
    needs a loss function and an optimizer (objects, or Keras' names for them).

    ValueError names what Keras models have no use for: own step functions (override `compute_loss` of the model) and
    the gradient mode ASYNC.
    """

    def __init__(self, options: FabricOptions) -> None:
        for name, value in (("fn_step_train", options.step_function), ("fn_test", options.test_function)):
            if value:
                raise ValueError(f"{name}: {value!r} is for PyTorch models; a Keras model takes none")
        mode = (os.environ.get("DLMESH_SYNC_MODE") or "SYNC").upper()
        if mode != "SYNC":
            raise ValueError(f"syncMode: {mode!r} is for PyTorch models; allowed for Keras models: SYNC")
        self.options = options
        keras.saving.get_custom_objects().update(options.keras_custom_objects)
        _compile(options)

    def train(self, sizing: Sizing) -> None:
        """Train to the end and write the weights into DLMESH_TRAIN_DIR (else model/train), from its newest checkpoint
        if there is one; SystemExit(143) after SIGTERM."""
        options, model, on_platform = self.options, self.options.model, bool(os.environ.get("DLMESH_PARAMETERS"))
        seed = run_parameters.getSeed() if on_platform else 0
        workers = gang.join(seed, computes=False)
        # All workers get the same data in the same order: their parts are parts of one batch.
        keras.utils.set_random_seed(seed)
        train_data, test_data = options.get_datasets()
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
        folder = train_folder()
        folder.mkdir(parents=True, exist_ok=True)
        given = [made(callback) for callback in options.callbacks]
        callbacks = [callback for callback in given if isinstance(callback, keras.callbacks.Callback)]
        others = [callback for callback in given if callback not in callbacks]
        callbacks.append(_Hooks(others, sizing, folder, is_first=workers.is_first))
        loggers = Loggers(options, workers)
        task = KerasTask(
            model,
            as_samples(train_data),
            None if test_data is None else as_samples(test_data),
            callbacks=callbacks,
            collate=_to_arrays(options.collate) if options.collate else stack,
        )
        loggers.began()
        train(task, workers, folder, initial_weights(sys.argv), plan, _Metrics(loggers))
        if options.save_to_onnx and workers.is_first:
            _write_onnx(model, folder / "model.onnx")


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


class _Metrics(Listener):
    """Tells loggers of tests, and about once a second of steps."""

    def __init__(self, loggers: Loggers) -> None:
        self._loggers = loggers
        self._told_seconds = 0.0

    def trained(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        if time.monotonic() - self._told_seconds >= monitor.PRINT_SECONDS:
            self._told_seconds = time.monotonic()
            self._loggers.trained(_named(values), step, epoch)

    def tested(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        self._loggers.tested(_named(values), step, epoch)

    def ended(self) -> None:
        self._loggers.ended()


def _named(values: Mapping[str, float]) -> dict[str, float]:
    """The values with an `accuracy` among them: Keras has a name for each kind."""
    accuracy = [value for name, value in values.items() if name.endswith("accuracy") or name == "acc"]
    return {**({"accuracy": accuracy[0]} if accuracy else {}), **values}


class _Hooks(keras.callbacks.Callback):
    """Passes Keras' events on to the platform's callbacks."""

    def __init__(self, callbacks: Sequence[Any], sizing: Sizing, folder: Path, *, is_first: bool) -> None:
        super().__init__()
        self._callbacks, self._sizing, self._folder, self._is_first = callbacks, sizing, folder, is_first

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        for callback in self._callbacks:
            callback.model = self.model
            callback.params = {"epochs": self._sizing.epochs, "optimizer": self.model.optimizer}
        self._tell("on_train_begin")

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self._tell("on_train_end")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._tell("on_epoch_begin", epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        often = self._sizing.checkpoint_epochs
        file = self._folder / f"model_epoch_{epoch + 1}.keras" if self._is_first else None
        self._tell("on_epoch_end", epoch, _SaveModel(self.model, file, bool(often) and (epoch + 1) % often == 0))

    def state_dict(self) -> dict[str, Any]:
        """What the callbacks remember."""
        kept = [callback.state_dict() if hasattr(callback, "state_dict") else None for callback in self._callbacks]
        return {"callbacks": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give it back to them."""
        for callback, kept in zip(self._callbacks, state["callbacks"], strict=False):
            if kept is not None:
                callback.load_state_dict(kept)

    def _tell(self, name: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            if (method := getattr(callback, name, None)) is not None:
                call(method, *arguments)


class _SaveModel:
    """What `on_epoch_end` is given: true when the weights of the epoch are kept, and called it keeps them."""

    def __init__(self, model: Any, file: Path | None, is_due: bool) -> None:
        self._model, self._file, self._is_due = model, file, is_due

    def __bool__(self) -> bool:
        return self._is_due

    def __call__(self, *_: Any) -> None:
        if self._file is not None:
            write_weights(self._model, self._file)


def _write_onnx(model: Any, file: Path) -> None:
    """ONNX is an addition: what a model cannot be exported for is said, and its weights are there all the same."""
    try:
        model.export(str(file), format="onnx", verbose=False)
    except Exception as error:
        say(f"{file.name} was not written: {error}")


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
    model.compile(optimizer=optimizer, loss=loss, metrics=_several(options.metrics) or ["accuracy"])


def _several(metrics: Any) -> Any:
    """One metric is a list of one; names of outputs with their metrics stay what they are."""
    return (
        metrics if isinstance(metrics, Mapping) else list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    )


def _to_arrays(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda samples: keras.tree.map_structure(np.asarray, tuple(collate(samples)))
