"""What elastic programs derive their callbacks from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Is told how a training goes on, on the first worker. `params` has `epochs` and `optimizer`, `model` the model.

    Epochs count from 0, as Keras counts them. A training that was resized or killed goes on in the middle of an epoch,
    whose beginning is not told again.
    """

    params: Mapping[str, Any] = {}
    model: Any = None

    def on_train_begin(self) -> None:
        """The training begins or goes on."""

    def on_train_end(self) -> None:
        """All epochs are done; not called when the training was stopped."""

    def on_epoch_begin(self, epoch: int) -> None:
        """An epoch begins."""

    def on_epoch_end(self, epoch: int, save_model: Any) -> None:
        """An epoch is done. `save_model` is true when its weights are kept; calling it keeps them in any case."""


class LoggerCallback(Callback):
    """Is given the metrics. Both published forms of the two methods are understood, by the names of their arguments:

    - `log_train_metrics(loss, acc, completed_batch, worker=0)`: accuracy in percent, steps done, number of a worker;
    - `log_train_metrics(metrics, iteration, epoch, workers)`: a mapping with `loss` and `accuracy` (0 to 1), the step
      and epoch from 1, and how many workers there are (`log_test_metrics` has no `workers`).
    """

    def log_train_metrics(self, *values: Any, **named: Any) -> None:
        """Metrics of the training data, about once a second."""

    def log_test_metrics(self, *values: Any, **named: Any) -> None:
        """Metrics of the test data, after each test."""
