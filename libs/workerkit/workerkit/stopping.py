"""SIGTERM means: write a checkpoint and end soon."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_stop = threading.Event()


def watch_for_stop() -> None:
    """From now on SIGTERM only sets the flag; the program promises to look at it. Main thread only."""

    def remember(_number: int, _frame: FrameType | None) -> None:
        _stop.set()

    signal.signal(signal.SIGTERM, remember)


def stop_requested() -> bool:
    """True after SIGTERM, when `watch_for_stop` was called before."""
    return _stop.is_set()
