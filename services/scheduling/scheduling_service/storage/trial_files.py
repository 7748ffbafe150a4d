"""What programs of trials wrote."""

from __future__ import annotations

from pathlib import Path

from workerkit.trial_results import TrialResults, read_trial_results

from scheduling_service.storage.exec_folders import RESULTS


class DiskTrialFiles:
    """`usecases.exec_ports.TrialFiles`; `execs` is where the folders of tasks lie."""

    def __init__(self, execs: Path) -> None:
        self._execs = execs

    def results(self, task_id: str) -> TrialResults:
        folder = self._execs / task_id
        return read_trial_results(folder, folder / RESULTS)
