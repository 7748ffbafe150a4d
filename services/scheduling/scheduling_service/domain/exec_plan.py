"""How a framework wants an exec task run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ExecPlan:
    """Frozen when the task is submitted.

    `min_ranks` below `ranks` makes it elastic, 0 does not. A `command` (argv) replaces the program of the upload.
    `warm`: its ranks may be forks of the warm pool.
    """

    ranks: int
    min_ranks: int = 0
    parameter_servers: int = 0
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False
    max_restarts: int = 0
