"""The curves of a training as TensorBoard files, in the folder `curves` of LOG_DIR."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlmesh_sdk.program_logs import say

FOLDER = "curves"


class TensorBoardCurves:
    """Writes what the first worker reports; without LOG_DIR nothing.

    Trouble, a full disk say, ends the writing with a line on stderr and never a training.
    """

    def __init__(self) -> None:
        folder = os.environ.get("LOG_DIR") if os.environ.get("RANK", "0") == "0" else None
        self._folder = Path(folder, FOLDER) if folder else None
        self._file: Any = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        """One point of each curve at `step`."""
        if self._folder is None:
            return
        try:
            if self._file is None:
                from recordkit.event_file import EventFile

                self._file = EventFile(self._folder, step)
            self._file.add(values, step)
        except (OSError, ValueError, ImportError) as error:
            say(f"TensorBoard files are not written any more: {error}", to=sys.stderr)
            self.close()

    def close(self) -> None:
        """No more points."""
        self._folder = None
        if self._file is not None:
            self._file.close()
