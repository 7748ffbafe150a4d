"""Tells the loggers of an elastic program its metrics, in whichever published form they take them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dlmesh_sdk.fabric_options import FabricOptions
from dlmesh_sdk.gang import Gang


class Loggers:
    """The driver's logger (on the first worker only) and the worker's. Values are means over all samples of a step;
    `accuracy` is 0 to 1, steps and epochs count from 1."""

    def __init__(self, options: FabricOptions, gang: Gang) -> None:
        self._workers = gang.world_size
        self._rank = gang.rank
        loggers = [options.worker_logger, options.driver_logger if gang.is_first else None]
        self._loggers = [made(logger) for logger in loggers if logger is not None]

    def began(self) -> None:
        """The training begins or goes on."""
        self._tell("on_train_begin")

    def trained(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """A step was taken."""
        self._log("log_train_metrics", values, step, epoch)

    def tested(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """The model was tested."""
        self._log("log_test_metrics", values, step, epoch)

    def ended(self) -> None:
        """The training is complete."""
        self._tell("on_train_end")

    def _log(self, name: str, values: Mapping[str, float], step: int, epoch: int) -> None:
        for logger in self._loggers:
            if (method := getattr(logger, name, None)) is None:
                continue
            names = inspect.signature(method).parameters
            if "metrics" in names:
                more = {"workers": self._workers} if "workers" in names else {}
                method(dict(values), step, epoch, **more)
            else:
                # Accuracy in percent, as the older form has it.
                call(method, values["loss"], 100 * values.get("accuracy", 0.0), step, self._rank)

    def _tell(self, name: str) -> None:
        for logger in self._loggers:
            if (method := getattr(logger, name, None)) is not None:
                method()


def made(callback: Any) -> Any:
    """The callback itself; of a class, an object of it."""
    return callback() if isinstance(callback, type) else callback


def call(method: Any, *arguments: Any) -> Any:
    """What it returns when called with as many of the arguments as it takes."""
    kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
    takes = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
    return method(*arguments if inspect.Parameter.VAR_POSITIONAL in kinds else arguments[:takes])
