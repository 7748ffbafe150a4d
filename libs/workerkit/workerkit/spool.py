"""Files in a job's attempt directory: the facts of a worker, durable before anyone is told."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import logging
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

REPORT_FILE = "report.json"
_ATTEMPT = re.compile(r"attempt-(\d+)")
METRICS_FILE = "metrics.jsonl"
OFFSET_FILE = "metrics.offset"
MAX_OFFSET_DIGITS = 20
MAX_REPORT_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
_READ_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What the platform takes; points beyond would be refused with all that are sent beside them, again and again.
MAX_SERIES_LENGTH = 128
MAX_STEP = 2**31 - 1
# A line has no more points than these, and a batch ends with the line that fills it: what a program writes must fill
# neither the memory of who reads it nor a message.
MAX_SERIES = 1000
BATCH_LINES, BATCH_POINTS, BATCH_BYTES = 500, 10_000, 8 * 1024 * 1024


@dataclass(frozen=True)
class MetricPoint:
    """One value of a series; `step` counts optimizer steps, `time` is seconds since the epoch."""

    series: str
    step: int
    value: float
    time: float


def open_plain(path: Path) -> BinaryIO:
    """Open a file that a user program can replace, for reading; OSError when it is a link, a pipe or anything else.

    Opening a pipe would wait for a writer, and its reader with it.
    """
    return _plain(os.open(path, _READ_PLAIN), path)


def open_plain_below(folder: Path, path: Path) -> BinaryIO:
    """As `open_plain`, for a file somewhere below `folder`, which is ours: no link on the way is followed either."""
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    if not parts or ".." in parts:
        raise OSError(errno.EINVAL, "not below its folder", str(path))
    opened = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(part, flags, dir_fd=opened[-1]))
        return _plain(os.open(parts[-1], _READ_PLAIN, dir_fd=opened[-1]), path)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _plain(descriptor: int, path: Path) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` whole: a reader sees the old text or the new, never a piece."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def read_report(directory: Path) -> dict[str, Any]:
    """{"progress": {"done", "total", "phase"}, "result": ..., "not_finite": {"series", "step", "lasts"},
    "not_finite_since": {series: step}}.

    Empty when the worker reported nothing. `not_finite` says which series had a value that is no number first, and
    whether it has had none since; `not_finite_since` has all series whose newest value is none. User programs can write
    the file: what is too large or has another form is left out.
    """
    try:
        with open_plain(directory / REPORT_FILE) as file:
            content = file.read(MAX_REPORT_BYTES + 1)
        report = json.loads(content) if len(content) <= MAX_REPORT_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(report, dict):
        return {}
    found = {"progress": report["progress"]} if _is_progress(report.get("progress")) else {}
    if _is_not_finite(report.get("not_finite")):
        found["not_finite"] = report["not_finite"]
    if isinstance(since := report.get("not_finite_since"), dict):
        found["not_finite_since"] = dict(itertools.islice(filter(_is_since, since.items()), MAX_SERIES))
    return found | ({"result": report["result"]} if "result" in report else {})


def warning_of(report: Mapping[str, Any]) -> str:
    """What people should know of a report beside its progress; empty when there is nothing."""
    found = report.get("not_finite")
    if not found:
        return ""
    if found["lasts"]:
        return f"{found['series']} is not finite since iteration {found['step']}"
    return f"{found['series']} was not finite at iteration {found['step']}"


def not_finite_series(report: Mapping[str, Any]) -> Sequence[str] | None:
    """The series of a report whose newest value is no number; None when it says nothing of them."""
    return list(report["not_finite_since"]) if "not_finite_since" in report else None


def earlier_not_finite(directory: Path) -> dict[str, Any]:
    """`not_finite` and `not_finite_since` of the newest attempt that reported points, `directory` being that of the
    attempt that begins; empty when it said neither.

    That attempt took over what the ones before it had said. A program that begins again within its attempt counts, too.
    """
    match = _ATTEMPT.fullmatch(directory.name)
    for number in range(int(match[1]), 0, -1) if match else ():
        attempt = directory.with_name(f"attempt-{number}")
        report = read_report(attempt)
        found: dict[str, Any] = {name: report[name] for name in ("not_finite", "not_finite_since") if name in report}
        if found:
            return found
        if (attempt / METRICS_FILE).exists():
            return {}
    return {}


def _is_progress(progress: Any) -> bool:
    return (
        isinstance(progress, dict)
        and progress.keys() == {"done", "total", "phase"}
        and all(type(progress[name]) is float for name in ("done", "total"))
        and isinstance(progress["phase"], str)
    )


def _is_not_finite(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == {"series", "step", "lasts"}
        and isinstance(found["series"], str)
        and 0 < len(found["series"]) <= MAX_SERIES_LENGTH
        and found["series"].isprintable()
        and type(found["step"]) is int
        and 0 <= found["step"] <= MAX_STEP
        and isinstance(found["lasts"], bool)
    )


def _is_since(item: tuple[str, Any]) -> bool:
    series, step = item
    is_named = 0 < len(series) <= MAX_SERIES_LENGTH and series.isprintable()
    return is_named and type(step) is int and 0 <= step <= MAX_STEP


def append_metrics(directory: Path, values: Mapping[str, float], step: int) -> None:
    """Add one line; lines are short, so that appends are whole."""
    line = json.dumps({"step": step, "time": time.time(), "values": dict(values)}) + "\n"
    with (directory / METRICS_FILE).open("a") as file:
        file.write(line)


def acknowledged(directory: Path) -> int:
    """The byte of the metrics up to which they have been delivered; 0 when nothing says so.

    User programs can write the file: it counts where it names the end of a line.
    """
    try:
        with open_plain(directory / OFFSET_FILE) as file:
            offset = int(file.read(MAX_OFFSET_DIGITS))
        if offset <= 0:
            return 0
        with open_plain(directory / METRICS_FILE) as file:
            file.seek(offset - 1)
            return offset if file.read(1) == b"\n" else 0
    except (OSError, ValueError, OverflowError):
        return 0


def read_metrics(directory: Path, offset: int) -> tuple[list[MetricPoint], int]:
    """A batch of lines from byte `offset` on as points, and the offset behind them; a torn last line waits.

    User programs can write the file: lines of another form are passed over, one without an end ends it, and of one with
    too many points only the first count.
    """
    points: list[MetricPoint] = []
    try:
        file = open_plain(directory / METRICS_FILE)
    except OSError:
        return points, offset
    with file:
        file.seek(offset)
        end = offset + BATCH_BYTES
        for _ in range(BATCH_LINES):
            if len(points) >= BATCH_POINTS or offset >= end:
                break
            line = file.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            points += _points(line, directory)
    return points, offset


def _points(line: bytes, directory: Path) -> list[MetricPoint]:
    try:
        row = json.loads(line)
        step, time_ = int(row["step"]), float(row["time"])
        values = row["values"]
        if len(values) > MAX_SERIES:
            _tell_of_too_many(directory)
        return [
            MetricPoint(name, step, float(value), time_)
            for name, value in itertools.islice(values.items(), MAX_SERIES)
            if 0 < len(name) <= MAX_SERIES_LENGTH and name.isprintable() and 0 <= step <= MAX_STEP
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []


@functools.lru_cache(maxsize=1024)
def _tell_of_too_many(directory: Path) -> None:
    """Once a spool."""
    log.warning("%s: of a step with more than %d values the first count", directory / METRICS_FILE, MAX_SERIES)
