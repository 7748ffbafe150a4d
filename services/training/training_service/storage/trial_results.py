"""What programs of trials write for their study. Programs may put anything in its place."""

from __future__ import annotations

from pathlib import Path

from workerkit.spool import open_plain_below

from training_service.domain.trials import TrialResults

RESULTS_FILE = "val_dict_list.json"
# A long list of steps.
MAX_RESULTS_BYTES = 8 * 1024 * 1024


def read_results(folder: Path) -> TrialResults:
    """The results in the folder of a run, which is its program's $RESULT_DIR."""
    try:
        file = open_plain_below(folder, folder / RESULTS_FILE)
    except OSError:
        return TrialResults()
    with file:
        # One byte further: it may grow while it is read.
        content = file.read(MAX_RESULTS_BYTES + 1)
    if len(content) > MAX_RESULTS_BYTES:
        return TrialResults(error=f"{RESULTS_FILE} is larger than {MAX_RESULTS_BYTES} bytes")
    return TrialResults(content.decode("utf-8", "replace"))
