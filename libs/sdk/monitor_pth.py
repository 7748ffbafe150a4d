"""Progress and metrics of a PyTorch training: printed as the documented lines and reported to the platform."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

PRINT_SECONDS = 1.0


class PytorchMonitor:
    """Call `train` after every iteration and `test` after every test, in one worker only.

    Lines are printed, and training points reported, at most once a second (the last iteration always); tests always.
    Outside the platform it only prints.
    """

    def __init__(self, total_iterations: int) -> None:
        self.total_iterations = total_iterations
        self._reporter = _reporter()
        self._last_seconds = 0.0
        print(f"Total iterations: {total_iterations}", flush=True)

    def train(self, iteration: int, loss: Any, accuracy: float | None = None) -> None:
        """Report training loss (a float or tensor) and accuracy (0 to 1) of one iteration, counted from 1."""
        now = time.monotonic()
        if now - self._last_seconds < PRINT_SECONDS and iteration < self.total_iterations:
            return
        self._last_seconds = now
        self._point(iteration, {"train_loss": loss, "train_accuracy": accuracy})

    def test(self, iteration: int, loss: float, accuracy: float | None = None) -> None:
        """Report loss and accuracy (0 to 1) on the test data after `iteration`."""
        self._point(iteration, {"test_loss": loss, "test_accuracy": accuracy})

    def close(self) -> None:
        """Deliver what is still under way."""
        if self._reporter is not None:
            self._reporter.close()

    def __enter__(self) -> PytorchMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _point(self, iteration: int, series: dict[str, Any]) -> None:
        values = {name: _number(value) for name, value in series.items() if value is not None}
        print(f"Timestamp {int(time.time() * 1000)}, Iteration {iteration}")
        for name, value in values.items():
            print(f"Iteration {iteration}: tag {name}, simple_value {value:.6g}", flush=True)
        if self._reporter is not None:
            self._reporter.progress(iteration, self.total_iterations, "training")
            self._reporter.metrics(values, iteration)


def _number(value: Any) -> float:
    return float(value.detach()) if hasattr(value, "detach") else float(value)


def _reporter() -> Any:
    if not os.environ.get("DLMESH_JOB_ID"):
        return None
    from workerkit import Reporter

    return Reporter.from_environment()
