"""What programs of trials write for their study. Programs may put anything in its place."""

from __future__ import annotations

import os
from pathlib import Path

from workerkit.spool import open_plain_below

from scheduling_service.storage.exec_folders import RESULTS
from scheduling_service.usecases.exec_ports import TrialResults

RESULTS_FILE = "val_dict_list.json"
# A long list of steps.
MAX_RESULTS_BYTES = 8 * 1024 * 1024


class DiskTrialFiles:
    """`usecases.exec_ports.TrialFiles`; `execs` is where the folders of tasks lie."""

    def __init__(self, execs: Path) -> None:
        self._execs = execs

    def results(self, task_id: str) -> TrialResults:
        folder = self._execs / task_id
        try:
            file = open_plain_below(folder, folder / RESULTS / RESULTS_FILE)
        except OSError:
            return TrialResults()
        with file:
            size = os.fstat(file.fileno()).st_size
            # Read one byte further: it may grow while it is read.
            content = b"" if size > MAX_RESULTS_BYTES else file.read(MAX_RESULTS_BYTES + 1)
        if size > MAX_RESULTS_BYTES or len(content) > MAX_RESULTS_BYTES:
            return TrialResults(error=f"{RESULTS_FILE} is larger than {MAX_RESULTS_BYTES} bytes")
        return TrialResults(content.decode("utf-8", "replace"))
