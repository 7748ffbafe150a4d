"""Progress and metrics of a Keras training: printed as the documented lines and reported to the platform."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from dlmesh_sdk import run_parameters, tf_parameters
from dlmesh_sdk.monitor import PytorchMonitor


class TFKerasMonitorCallback(keras.callbacks.Callback):
    """Give it to `model.fit(callbacks=[...])`, on every worker; the first one prints and reports.

    `test_data` (a tf.data.Dataset, a keras Sequence, a generator or a pair of arrays) is evaluated every
    `test_interval` iterations on `test_iteration` batches, and at the end as a whole if it has an end. Both come from
    the platform when they are not given. Without `test_data` the results of `fit(validation_data=...)` are reported.
    Training values are what Keras shows: means since the epoch began.
    """

    def __init__(self, test_data: Any = None, test_interval: int = 0, test_iteration: int = 0) -> None:
        super().__init__()
        self._test_data = test_data
        self._on_platform = bool(os.environ.get("DLMESH_PARAMETERS"))
        given = self._on_platform
        self._interval = test_interval or (
            run_parameters.getTestInterval() if given else run_parameters.DEFAULT_TEST_INTERVAL
        )
        self._batches = test_iteration or (
            run_parameters.getTestIteration() if given else run_parameters.DEFAULT_TEST_ITERATION
        )
        self._is_first = os.environ.get("RANK", "0") == "0"
        self._monitor: PytorchMonitor | None = None
        self._begin = self._iteration = self._tested = 0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        # An optimizer that was restored goes on counting.
        self._iteration = self._tested = int(self.model.optimizer.iterations.numpy())
        steps = self.params.get("steps")
        if steps:
            self._start_monitor(self.params["epochs"] * steps)
        elif self._on_platform:
            self._start_monitor(tf_parameters.getMaxSteps())

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        steps = self.params.get("steps")
        self._begin = epoch * steps if steps else self._iteration

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        before, self._iteration = self._iteration, self._begin + batch + 1
        if self._monitor is not None and logs and self._monitor.is_due(self._iteration):
            rate = getattr(self.model.optimizer, "learning_rate", None)
            # A variable of a distribution strategy is no number to `float`.
            rate = None if rate is None else float(np.asarray(rate))
            self._monitor.train(self._iteration, logs.get("loss"), _accuracy(logs), learning_rate=rate)
        # Several steps may have been one execution.
        if before // self._interval < self._iteration // self._interval:
            self._test(self._batches)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._monitor is None:
            # Only now it is known how many batches an epoch has.
            self._start_monitor(self.params["epochs"] * (self._iteration - self._begin))
        if self._test_data is None and self._monitor is not None and logs and "val_loss" in logs:
            validation = {name.removeprefix("val_"): value for name, value in logs.items() if name.startswith("val_")}
            self._monitor.test(self._iteration, validation["loss"], _accuracy(validation))

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        endless = (
            isinstance(self._test_data, tf.data.Dataset)
            and self._test_data.cardinality() == tf.data.INFINITE_CARDINALITY
        )
        if endless and self._tested < self._iteration:
            self._test(self._batches)
        elif not endless:
            self._test(None)
        if self._monitor is not None:
            self._monitor.close()

    def _start_monitor(self, total: int) -> None:
        if self._is_first:
            self._monitor = PytorchMonitor(total)

    def _test(self, batches: int | None) -> None:
        """Evaluate the first `batches` batches, all when None; every worker has to take part."""
        if self._test_data is None:
            return
        self._tested = self._iteration
        metrics = [variable for metric in self.model.metrics for variable in metric.variables]
        # Evaluating begins the metrics anew; the epoch goes on with what it had.
        alone = self.model.distribute_strategy.num_replicas_in_sync == 1
        before = [variable.numpy() for variable in metrics] if alone else []
        results = self._evaluate(batches)
        for variable, value in zip(metrics, before, strict=False):
            variable.assign(value)
        if self._monitor is not None:
            self._monitor.test(self._iteration, results["loss"], _accuracy(results))

    def _evaluate(self, batches: int | None) -> Mapping[str, float]:
        data, more = self._test_data, {}
        if isinstance(data, tf.data.Dataset):
            data = data if batches is None else data.take(batches)
        elif hasattr(data, "__len__") and not isinstance(data, tuple | list):
            more = {"steps": min(len(data), batches or len(data))}
        elif isinstance(data, tuple | list):
            size = run_parameters.getTestBatchSize() if self._on_platform else run_parameters.DEFAULT_BATCH_SIZE
            count = None if batches is None else batches * size
            data, more = data[0][:count], {"y": data[1][:count], "batch_size": size}
        else:
            # A generator has no end that could be trusted.
            more = {"steps": self._batches}
        results: Mapping[str, float] = self.model.evaluate(data, verbose=0, return_dict=True, **more)
        return results


def _accuracy(logs: Mapping[str, float]) -> float | None:
    return next((value for name, value in logs.items() if "acc" in name), None)
