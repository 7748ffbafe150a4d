"""What stays to be done of a run that was deleted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Removal:
    """The order to remove the files, the job and the metrics of a run that is in no list any more.

    `kind` is training or validation; `name` tells people which one it was.
    """

    uid: str
    kind: str
    name: str
    job_id: str
