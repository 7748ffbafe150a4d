"""What programs of trials write for their study. They may put anything in its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from workerkit.spool import open_plain_below

# In the folder of a program's $RESULT_DIR.
RESULTS_FILE = "val_dict_list.json"
# A long list of steps.
MAX_RESULTS_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class TrialResults:
    """What a program wrote for its study; `error` says why there is no `text` though there is something."""

    text: str = ""
    error: str = ""


def read_trial_results(folder: Path, results: Path) -> TrialResults:
    """The results in the folder `results`, below or the same as `folder`, which is ours: as they are, and nothing where
    there is no plain file; what is no UTF-8 is replaced."""
    try:
        file = open_plain_below(folder, results / RESULTS_FILE)
    except OSError:
        return TrialResults()
    with file:
        size = os.fstat(file.fileno()).st_size
        # Read one byte further: it may grow while it is read.
        content = b"" if size > MAX_RESULTS_BYTES else file.read(MAX_RESULTS_BYTES + 1)
    if size > MAX_RESULTS_BYTES or len(content) > MAX_RESULTS_BYTES:
        return TrialResults(error=f"{RESULTS_FILE} is larger than {MAX_RESULTS_BYTES} bytes")
    return TrialResults(content.decode("utf-8", "replace"))
