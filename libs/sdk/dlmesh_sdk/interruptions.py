"""What interrupts a training between two steps: a checkpoint that is due, and the wish that it stops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from dlmesh_sdk.checkpoints import Checkpoints
from dlmesh_sdk.program_logs import say

# What a process ended by SIGTERM leaves; a training asked to stop ends itself with it when its checkpoint is written.
STOPPED = 143


def interrupt(
    checkpoints: Checkpoints, step: int, total: int, save: Callable[[], object], *, stopping: bool, due: bool
) -> None:
    """Do what the workers agreed on after `step` of `total`, the same on all of them.

    `save` is called when a checkpoint is due or the training ends here. SystemExit(143) when it does.
    """
    if stopping or due:
        save()
    if stopping:
        end_stopped(checkpoints, step, total)


def end_stopped(checkpoints: Checkpoints, step: int, total: int) -> NoReturn:
    """End the process once everything given to `checkpoints` is written; SystemExit(143)."""
    checkpoints.finish()
    say(f"Stopped after iteration {step} of {total}")
    sys.exit(STOPPED)
