"""What an engine tells of an attempt's processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProcessFacts:
    """A driver or a rank: where it runs or ran, and what it and all it started take now (0 once it has ended).

    `cores_used` are the processor cores that it kept busy since the last look, `stdout` and `stderr` the files of its
    output, which outlive it.
    """

    id: str
    host: str = ""
    container_id: str = ""
    cores_used: float = 0.0
    memory_mb: float = 0.0
    stdout: str = ""
    stderr: str = ""
    gpu_memory_mb: float = 0.0
    gpu_utilization: float = 0.0


@dataclass(frozen=True)
class AttemptFacts:
    """An attempt's processes; `executors` are its ranks in their order."""

    driver: ProcessFacts
    executors: Sequence[ProcessFacts] = field(default_factory=tuple)
    ui_port: str = ""
