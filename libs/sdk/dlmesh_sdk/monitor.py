"""Progress and metrics of a PyTorch training: printed as the documented lines, reported to the platform, and written to
LOG_DIR for TensorBoard."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from dlmesh_sdk.program_logs import say
from dlmesh_sdk.tensorboard_curves import TensorBoardCurves

PRINT_SECONDS = 1.0


class PytorchMonitor:
    """Call `train` after every iteration and `test` after every test, in one worker only.

    Lines are printed, and training points reported, at most once a second (the last iteration always); tests always.
    Besides what it is given, a training point has throughput, the share of time spent waiting for data, and memory.
    Outside the platform it only prints, and writes TensorBoard files if LOG_DIR is set.
    """

    def __init__(self, total_iterations: int) -> None:
        self.total_iterations = total_iterations
        self._reporter = _reporter()
        self._curves = TensorBoardCurves()
        self._last_seconds = 0.0
        self._counted = 0
        self._begin_iteration: int | None = None
        self._samples = 0
        self._waited_seconds = 0.0
        self._begin_seconds = time.monotonic()
        say(f"Total iterations: {total_iterations}")

    def is_due(self, iteration: int, samples: int = 0) -> bool:
        """True when `train` would report this iteration; `samples` is how many it took, over all workers."""
        self._count(iteration, samples)
        return time.monotonic() - self._last_seconds >= PRINT_SECONDS or iteration >= self.total_iterations

    def train(
        self,
        iteration: int,
        loss: Any,
        accuracy: Any = None,
        learning_rate: float | None = None,
        samples: int = 0,
        **metrics: Any,
    ) -> None:
        """Report training loss (a float or tensor), accuracy (0 to 1) and more of one iteration, counted from 1."""
        if not self.is_due(iteration, samples):
            return
        now = time.monotonic()
        self._last_seconds = now
        series = {"train_loss": loss, "train_accuracy": accuracy}
        series |= {f"train_{name}": value for name, value in metrics.items()}
        self._point(iteration, series, {"learning_rate": learning_rate, **self._costs(now, iteration)})

    def test(self, iteration: int, loss: Any, accuracy: Any = None, **metrics: Any) -> None:
        """Report loss, accuracy (0 to 1) and more on the test data after `iteration`."""
        series = {"test_loss": loss, "test_accuracy": accuracy}
        self._point(iteration, series | {f"test_{name}": value for name, value in metrics.items()}, {})

    def waited(self, seconds: float) -> None:
        """The training waited so long for its data."""
        self._waited_seconds += seconds

    def close(self) -> None:
        """Deliver what is still under way."""
        self._curves.close()
        if self._reporter is not None:
            self._reporter.close()

    def __enter__(self) -> PytorchMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, iteration: int, samples: int) -> None:
        if iteration != self._counted:
            self._counted = iteration
            self._samples += samples

    def _costs(self, now: float, iteration: int) -> dict[str, float]:
        """Throughput, share of the time spent waiting for data, memory; since the point before."""
        seconds = now - self._begin_seconds
        costs = _memory()
        if seconds > 0:
            costs["data_wait_fraction"] = self._waited_seconds / seconds
            # Of the first point nobody knows how many iterations there were before.
            if self._begin_iteration is not None:
                costs["steps_per_second"] = (iteration - self._begin_iteration) / seconds
            if self._samples:
                costs["samples_per_second"] = self._samples / seconds
        self._begin_seconds, self._begin_iteration = now, iteration
        self._samples, self._waited_seconds = 0, 0.0
        return costs

    def _point(self, iteration: int, series: dict[str, Any], costs: dict[str, Any]) -> None:
        values = {name: _number(value) for name, value in series.items() if value is not None}
        say(
            f"Timestamp {int(time.time() * 1000)}, Iteration {iteration}",
            *(f"Iteration {iteration}: tag {name}, simple_value {value:.6g}" for name, value in values.items()),
        )
        reported = values | {name: float(value) for name, value in costs.items() if value is not None}
        if self._reporter is not None:
            self._reporter.progress(iteration, self.total_iterations, "training")
            self._reporter.metrics(reported, iteration)
        self._curves.add(reported, iteration)


def _number(value: Any) -> float:
    return float(value.detach()) if hasattr(value, "detach") else float(value)


def _memory() -> dict[str, float]:
    """What this process holds now, and the most that it has held on its GPU."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = {"memory_bytes": float(pages * os.sysconf("SC_PAGE_SIZE"))}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        memory["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return memory


def _reporter() -> Any:
    if not os.environ.get("DLMESH_JOB_ID"):
        return None
    from workerkit import Reporter

    return Reporter.from_environment()
