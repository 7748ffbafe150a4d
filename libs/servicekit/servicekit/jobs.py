"""Jobs of the scheduling service as the services that own them ask for and see them; `job_client` speaks with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Any

# What the scheduling service takes; the seconds are ten years.
MAX_PRIORITY = 100
MAX_SECONDS = 315_360_000
# SIGKILL, and how a shell says it, which is how a rank ends whose program was a process of its own.
KILLED_CODES = (-9, 128 + 9)


@dataclass(frozen=True)
class InstanceGroup:
    """Where jobs run, and as which user of the operating system (empty: the platform's own). `slots` is how many ranks
    one job may have there, `gpus` how many GPUs there are."""

    id: str
    name: str
    master_url: str = ""
    history_server_url: str = ""
    slots: int = 0
    gpus: int = 0
    execution_user: str = ""

    def room(self, gpu_percentage: int = 0) -> int:
        """The most ranks that one job can have here when each takes this share of a GPU (0 or 100: all of it)."""
        ranks_per_gpu = 100 // (gpu_percentage or 100)
        return min(self.slots, self.gpus * ranks_per_gpu) if self.gpus else self.slots


@dataclass(frozen=True)
class JobRequest:
    """What is asked of the scheduling service.

    `instance_group` is a name or an id, the default group when empty. `dataset`, `model` and `framework` are shown with
    the job. `max_restarts` counts failures of the program; `grace_seconds` lie between SIGTERM and SIGKILL. A job that
    is `warm` may start as a fork of the warm pool. `min_ranks` makes it elastic: `ranks` are the most then. It has
    failed when a rank gives no sign of life for `max_silent_seconds`, or when its folders hold more than
    `max_disk_bytes`; 0 is no limit. `gpu_percentage` is the share of one GPU that a rank takes, 1 to 99. An
    attempt that runs for longer than `max_seconds` has failed. `priority` is in the points of JobSpec. `study` is the
    name of the study that it is a trial of.
    """

    job_id: str
    name: str
    owner: str
    instance_group: str
    command: Sequence[str]
    working_directory: str
    dataset: str = ""
    model: str = ""
    framework: str = ""
    _: KW_ONLY
    kind: str
    max_restarts: int
    grace_seconds: float
    ranks: int = 1
    gpus_per_rank: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False
    min_ranks: int = 0
    max_silent_seconds: float = 0.0
    max_disk_bytes: int = 0
    gpu_percentage: int = 0
    priority: int = 0
    max_seconds: float = 0.0
    study: str = ""


@dataclass(frozen=True)
class RankOutcome:
    """How a rank ended; a negative code is the signal that ended it, None: it was not seen to end. Why the attempt
    failed is the code of the one that `is_cause`; others were ended after it."""

    rank: int
    pid: int
    exit_code: int | None = None
    is_cause: bool = False


@dataclass(frozen=True)
class JobFacts:
    """What the scheduling service says of a job.

    `state` is SUBMITTED, RUNNING, FINISHED, ERROR or KILLED. `phase` is what the program says that it is doing,
    `result` the object that it reported, None when it reported none; `refusal` is what it says under "refused",
    `warning` what people should know of a job that goes on or ended well. `log_tail` has the last lines of the rank
    that failed, `run_directory` the files of the newest attempt, `ranks` how many ranks that has and `rank_outcomes`
    how they ended. Of the `not_finite_series` the newest value that the program reported is no number.
    """

    job_id: str
    state: str
    reason: str = ""
    done: float = 0.0
    total: float = 0.0
    phase: str = ""
    result: Mapping[str, Any] | None = None
    refusal: str = ""
    warning: str = ""
    log_tail: str = ""
    driver_id: str = ""
    run_directory: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ranks: int = 0
    rank_outcomes: Sequence[RankOutcome] = ()
    not_finite_series: Sequence[str] = ()

    @property
    def was_killed(self) -> bool:
        """True when it failed because somebody killed a rank or its program: whoever needed its memory, say. What is
        ended at a limit was not killed."""
        killed = any(rank.is_cause and rank.exit_code in KILLED_CODES for rank in self.rank_outcomes)
        return killed and self.state == "ERROR"
