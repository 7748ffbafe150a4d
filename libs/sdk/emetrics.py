"""Metrics of a program as lines of a file, which the platform follows and tuning takes its results from.

    from emetrics import EMetrics

    with EMetrics.open() as metrics:
        metrics.record(EMetrics.TEST_GROUP, step, {"loss": 0.3, "accuracy": 0.91})

The file is evaluation-metrics.txt in LOG_DIR, else in JOB_STATE_DIR/logs, else in a temporary folder; a trial of a
tuning has a folder of its own there. Nothing here reports to the platform: whoever follows the file does, so that
programs with their own copy of this module are heard just so, and nothing counts twice.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from dlmesh_sdk.program_logs import append_line, log_folder

METRICS_FILE = "evaluation-metrics.txt"
RESULT_FILE = "val_dict_list.json"
# How the file calls the kinds of values; texts have none.
_INTEGER, _FLOAT = 2, 3


class EMetrics:
    """Appends records; made by `open`. Trouble with the disk is told once on stderr and never ends a training."""

    TRAIN_GROUP = "train"
    TEST_GROUP = "test"

    def __init__(self, trial: str, folder: Path) -> None:
        self._trial, self._folder = trial, folder
        self._records = 0
        self._results: dict[int, dict[str, Any]] = {}
        self._is_failing = False

    @classmethod
    def open(cls, subId: str | None = None) -> EMetrics:
        """`subId` names the trial of a tuning that this is, by default the environment variable SUBID does."""
        trial = subId if subId is not None else os.environ.get("SUBID", "")
        return cls(trial, log_folder(trial))

    def record(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Append `values` (numbers, tensors of one element, or texts) of the group "train" or "test" at `iteration`.

        Values that are not finite are kept as texts: a file of records has to stay readable.
        """
        self._records += 1
        meta = {
            "training_id": os.environ.get("TRAINING_ID", ""),
            "time": time.time_ns() // 1_000_000,
            "rindex": self._records,
        }
        line = {
            "meta": meta | ({"subid": self._trial} if self._trial else {}),
            "grouplabel": group,
            "etimes": {
                "iteration": {"type": _INTEGER, "value": str(int(iteration))},
                "time_stamp": {"value": datetime.now(UTC).isoformat(timespec="milliseconds")},
            },
            "values": {name: _described(value) for name, value in values.items()},
        }
        self._guarded(lambda: append_line(self._folder / METRICS_FILE, json.dumps(line)))
        if self._trial and group == self.TEST_GROUP:
            result = {"steps": int(iteration)} | {name: _plain(value) for name, value in values.items()}
            self._results[int(iteration)] = result

    def close(self) -> None:
        """Of a trial, add its test records to val_dict_list.json in RESULT_DIR; one of the same step is replaced."""
        if self._results:
            self._guarded(self._write_results)
            self._results = {}

    def __enter__(self) -> EMetrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_results(self) -> None:
        # Callbacks open and close for every record: what was written before is there already.
        folder = Path(os.environ.get("RESULT_DIR") or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / RESULT_FILE
        results = _written_before(file) | self._results
        draft = file.with_name(f".{RESULT_FILE}.{os.getpid()}")
        draft.write_text(json.dumps([results[steps] for steps in sorted(results)]), encoding="utf-8")
        draft.replace(file)

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            if not self._is_failing:
                print(f"metrics are not written any more: {error}", file=sys.stderr)
            self._is_failing = True


def _written_before(file: Path) -> dict[int, dict[str, Any]]:
    """What an earlier `close` wrote, by steps; nothing where there is something else."""
    try:
        return {int(row["steps"]): row for row in json.loads(file.read_text(encoding="utf-8"))}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}


def _plain(value: Any) -> int | float | str:
    """A number as such, everything else as text."""
    if isinstance(value, str | int | float):
        number = int(value) if isinstance(value, bool) else value
    elif hasattr(value, "item"):
        number = value.item()
    else:
        number = float(value)
    return str(number) if isinstance(number, float) and not math.isfinite(number) else number


def _described(value: Any) -> dict[str, Any]:
    plain = _plain(value)
    if isinstance(plain, str):
        return {"value": plain}
    return {"type": _INTEGER if isinstance(plain, int) else _FLOAT, "value": str(plain)}
