"""What kernels may take, and what waits for them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

KERNELS_A_CORE = 2


def _most_kernels() -> int:
    return KERNELS_A_CORE * len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class PoolLimits:
    """`max_kernels` of all models together. Of one model at most `queue_tasks` and `queue_bytes` of input wait or run;
    an output has at most `output_bytes`.

    One kernel may take `memory_bytes` unless its model says less, write files of `file_bytes`, and hold `folder_bytes`
    in its folder. One that is told to end may take `shutdown_seconds`. A batch whose callers have all gone is given up
    after `abandoned_seconds`; one whose kernel is to give its place to another model may take `grace_seconds`. A model
    whose kernels failed `start_tries` times in a row is FAILED, when kernels of it have run before only after
    `trouble_seconds` of that; between two tries are `first_backoff_seconds`, then twice as many, up to
    `longest_backoff_seconds`. `is_warm`: kernels that import
    torch are forks of a process that has it.
    """

    max_kernels: int = field(default_factory=_most_kernels)
    queue_tasks: int = 1000
    queue_bytes: int = 256 * 1024**2
    output_bytes: int = 16 * 1024**2
    memory_bytes: int = 4 * 1024**3
    file_bytes: int = 1024**3
    folder_bytes: int = 2 * 1024**3
    shutdown_seconds: float = 10.0
    abandoned_seconds: float = 5.0
    grace_seconds: float = 120.0
    start_tries: int = 5
    trouble_seconds: float = 600.0
    first_backoff_seconds: float = 0.1
    longest_backoff_seconds: float = 5.0
    is_warm: bool = True
