"""What elastic programs derive their callbacks from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Is told how a training goes on, on every worker (on the first in the mode ASYNC). `params` has `epochs` and
    `optimizer`, `model` the model.

    Epochs count from 0, as Keras counts them. A training that was resized or killed goes on in the middle of an epoch,
    whose beginning is not told again; a callback that has to remember something has methods `state_dict()` and
    `load_state_dict(state)` for what is kept in checkpoints (numbers, texts, tensors, lists and dicts of them).
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


class LearningRatePolicy(Callback):
    """Changes the learning rate after every epoch as the model's hyperparameter `lrpolicy` says."""

    def __init__(self, optimizer: Any) -> None:
        from dlmesh_sdk import pth_parameters
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        self._scheduler: Any = pth_parameters.getLearningRate(optimizer)
        if isinstance(self._scheduler, ReduceLROnPlateau):
            raise ValueError("lrpolicy: 'reducelronplateau' is not for elastic trainings; choose another")

    def on_epoch_end(self, epoch: int, save_model: Any) -> None:
        """One step of the policy."""
        if self._scheduler is not None:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Where the policy stands."""
        return {} if self._scheduler is None else dict(self._scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)


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
