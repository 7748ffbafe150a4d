"""Files in a job's attempt directory: the facts of a worker, durable before anyone is told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT_FILE = "report.json"
METRICS_FILE = "metrics.jsonl"
OFFSET_FILE = "metrics.offset"


@dataclass(frozen=True)
class MetricPoint:
    """One value of a series; `step` counts optimizer steps, `time` is seconds since the epoch."""

    series: str
    step: int
    value: float
    time: float


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` whole: a reader sees the old text or the new, never a piece."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def read_report(directory: Path) -> dict[str, Any]:
    """{"progress": {"done", "total", "phase"}, "result": ...}; empty when the worker reported nothing."""
    try:
        report = json.loads((directory / REPORT_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def append_metrics(directory: Path, values: Mapping[str, float], step: int) -> None:
    """Add one line; lines are short, so that appends are whole."""
    line = json.dumps({"step": step, "time": time.time(), "values": dict(values)}) + "\n"
    with (directory / METRICS_FILE).open("a") as file:
        file.write(line)


def read_metrics(directory: Path, offset: int, most: int = 500) -> tuple[list[MetricPoint], int]:
    """At most `most` lines from byte `offset` on as points, and the offset behind them; a torn last line waits."""
    points: list[MetricPoint] = []
    try:
        file = (directory / METRICS_FILE).open("rb")
    except FileNotFoundError:
        return points, offset
    with file:
        file.seek(offset)
        for _ in range(most):
            line = file.readline()
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            row = json.loads(line)
            points += [MetricPoint(name, row["step"], value, row["time"]) for name, value in row["values"].items()]
    return points, offset
