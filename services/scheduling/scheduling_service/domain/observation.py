"""What an engine sees of an attempt when the queue asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from scheduling_service.domain.job import Rank


class Phase(Enum):
    """What an engine knows of an attempt."""

    UNKNOWN = "unknown"  # never launched here
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"  # its keeper went without a word: a reboot, an out-of-memory kill


@dataclass(frozen=True)
class Observation:
    """An attempt as it stands; `failed_rank` is the one that failed first, whose output explains why. After a failure
    that is `final` another attempt would fail just so."""

    phase: Phase
    reason: str = ""
    ranks: Sequence[Rank] = field(default_factory=tuple)
    failed_rank: int | None = None
    keeper_pid: int = 0
    final: bool = False
    # What the engine calls the attempt and what keeps it; empty where it has no names of its own, or none yet.
    application_id: str = ""
    driver_id: str = ""
