"""Progress of a program as lines for people, in the file `stdout` of its log folder.

from elog import ELog

with ELog.open() as log:
    log.record("Train", iteration=100, loss=0.31, accuracy=0.9)
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from dlmesh_sdk.program_logs import append_line, log_folder

LOG_FILE = "stdout"


class ELog:
    """Appends lines; made by `open`. Trouble with the disk is told once on stderr and never ends a training."""

    def __init__(self, trial: str = "") -> None:
        self._file = log_folder(trial) / LOG_FILE
        self._is_failing = False

    @classmethod
    def open(cls, subId: str | None = None) -> ELog:
        """`subId` names the trial of a tuning that this is, by default the environment variable SUBID does."""
        return cls(subId if subId is not None else os.environ.get("SUBID", ""))

    def record(
        self, title: str, iteration: int, loss: Any, accuracy: Any = None, *, global_steps: int | None = None
    ) -> None:
        """Append a line of "Train" or "Test"; `global_steps` counts over all workers, by default it is `iteration`."""
        now = datetime.now(UTC)
        fields = [
            title,
            f"Timestamp: {time.time_ns() // 1_000_000}",
            f"Global steps: {iteration if global_steps is None else global_steps}",
            f"Iteration: {iteration}",
            f"Loss: {float(loss):.6g}",
            f"Accuracy: {'' if accuracy is None else format(float(accuracy), '.6g')}",
        ]
        try:
            append_line(self._file, f"[{now:%Y-%m-%d %H:%M:%S}] " + ",\t".join(fields))
        except OSError as error:
            if not self._is_failing:
                print(f"{self._file} is not written any more: {error}", file=sys.stderr)
            self._is_failing = True

    def close(self) -> None:
        """Nothing is kept back: every line was written at once."""

    def __enter__(self) -> ELog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
