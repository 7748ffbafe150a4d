"""Where the log files of a program lie, and how lines get into them; for `emetrics` and `elog`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def log_folder(trial: str = "") -> Path:
    """Where a program's logs belong: LOG_DIR, else JOB_STATE_DIR/logs, else the temporary folder; below it `trial`'s.

    ValueError for a trial whose name is not that of a folder.
    """
    state = os.environ.get("JOB_STATE_DIR")
    folder = Path(os.environ.get("LOG_DIR") or (Path(state, "logs") if state else tempfile.gettempdir()))
    if trial and (trial in (".", "..") or Path(trial).name != trial):
        raise ValueError(f"subId: {trial!r} is not valid; allowed: a name without slashes")
    return folder / trial


def append_line(file: Path, line: str) -> None:
    """Append one line, whole, also when several workers do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as sink:
        sink.write(f"{line}\n".encode())
