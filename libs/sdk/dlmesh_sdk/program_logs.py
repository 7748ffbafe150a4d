"""Where the log files of a program lie, and how lines get into them and onto its output."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO


def log_folder(trial: str = "") -> Path:
    """Where a program's logs belong: LOG_DIR, else JOB_STATE_DIR/logs, else the temporary folder; below it `trial`'s.

    ValueError for a trial whose name is not that of a folder.
    """
    state = os.environ.get("JOB_STATE_DIR")
    folder = Path(os.environ.get("LOG_DIR") or (Path(state, "logs") if state else tempfile.gettempdir()))
    if trial and (trial in (".", "..") or Path(trial).name != trial):
        raise ValueError(f"subId: {trial!r} is not valid; allowed: a name without slashes")
    return folder / trial


def say(*lines: str, to: TextIO | None = None) -> None:
    """Print the lines, at once, to stdout unless another stream is given; never a reason for a training to end.

    On the platform the output is a file, on a disk that may be full.
    """
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=to or sys.stdout, flush=True)


def append_line(file: Path, line: str) -> None:
    """Append one line, whole, also when several workers do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as sink:
        sink.write(f"{line}\n".encode())
