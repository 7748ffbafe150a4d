"""What the engine, the driver and the ranks' keepers of one attempt tell each other: the records of the attempt.

Each has one writer, is replaced whole and is never taken back. Standard library only: the driver and the keepers run
where nothing of the platform is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__:
    from workerkit.confinement import accounts, sizes

    from scheduling_service.engines.local import cgroups, keeper, places, processes, records, usage, watches
else:  # run as a file, without importing the package
    sys.path.insert(0, str(Path(__file__).parents[1] / "local"))
    import paths  # type: ignore[import-not-found]

    sys.path[:0] = paths.SHARED_FOLDERS
    import accounts  # type: ignore[import-not-found,no-redef]
    import cgroups  # type: ignore[import-not-found,no-redef]
    import keeper  # type: ignore[import-not-found,no-redef]
    import places  # type: ignore[import-not-found,no-redef]
    import processes  # type: ignore[import-not-found,no-redef]
    import records  # type: ignore[import-not-found,no-redef]
    import sizes  # type: ignore[import-not-found,no-redef]
    import usage  # type: ignore[import-not-found,no-redef]
    import watches  # type: ignore[import-not-found,no-redef]

# What the keeper of the local engine does for its ranks is done for a rank here.
__all__ = ["accounts", "cgroups", "keeper", "places", "processes", "records", "sizes", "usage", "watches"]

# By the engine.
SPEC_FILE, SUBMISSION_FILE, STOP_FILE, LOG_SETTINGS = "spec.json", "submission.json", "stop", "log4j2.properties"
# By the driver; the outcome also by the engine, under the driver's lock, when there is no driver.
DRIVER_FILE, END_FILE, OUTCOME_FILE, LOCK_FILE = "driver.json", "end.json", "outcome.json", "driver.lock"
HEARTBEAT_FILE, DRIVER_USAGE = "driver.alive", "driver-usage.json"
# By the keeper of rank 0: where the ranks meet.
MEETING_FILE = "meeting.json"
# A driver whose heartbeat stands still for so long is gone: first the ranks end, only then is the attempt given up.
FENCE_SECONDS, GONE_SECONDS = 20.0, 30.0


def rank_file(rank: int) -> str:
    """What the keeper of a rank says of it: who they are, then how it ended."""
    return f"rank-{rank}.json"


def usage_file(rank: int) -> str:
    """What a rank and all it started take."""
    return f"rank-{rank}-usage.json"
