"""What pools of kernels are told and say: how a model's kernels run, tasks, and why a task has no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

NO_LIMIT = -1


class GpuUse(Enum):
    """What of this machine's GPUs a kernel sees: none, all of them, or one that no other kernel has."""

    NO = "no"
    SHARED = "shared"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True)
class PoolPolicy:
    """When kernels start and end, and what each is given.

    Between `kernel_min` and `kernel_max` of them run (-1: as many as the machine may have); one that had no task for
    `kernel_delay_release_seconds` ends if it is beyond the least. A kernel is given up to `task_batch_size` tasks at
    once and has up to `task_pipe_size` such batches in hand; a batch that takes longer than
    `task_execution_timeout_seconds` (-1: no limit) costs the kernel its life. It must be ready
    `connection_timeout_seconds` after its start. Queues are looked at every `schedule_interval_seconds`, and at once
    when a task comes and no kernel runs.
    """

    kernel_min: int = 1
    kernel_max: int = 2
    kernel_delay_release_seconds: float = 60.0
    task_batch_size: int = 8
    task_pipe_size: int = 1
    task_execution_timeout_seconds: float = 60.0
    connection_timeout_seconds: float = 60.0
    schedule_interval_seconds: float = 0.2


@dataclass(frozen=True)
class KernelLimits:
    """What one kernel may take: cores (0: all), and bytes of memory (0: the platform's limit)."""

    cores: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class KernelLaunch:
    """All that a model's kernels are started from.

    `folder` (the model's files, read only for kernels) lies in a folder of the model's own, in which pools make `run/`:
    where kernels work, and `kernel.log` with what they print. `kernel_file` lies below `folder`. `description` is what
    `get_model_description()` answers. `execution_user` is the user of the operating system, empty for the platform's.
    `is_proven`: kernels of it have run, so that none has to be started to see whether they can when `kernel_min` is 0.
    Models share what there may be of kernels as their owners do.
    """

    uid: str
    name: str
    folder: Path
    kernel_file: str
    description: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    policy: PoolPolicy = PoolPolicy()
    gpu: GpuUse = GpuUse.NO
    limits: KernelLimits = KernelLimits()
    execution_user: str = ""
    umask: int = 0o077
    is_proven: bool = False
    owner: str = ""


@dataclass(frozen=True)
class KernelTask:
    """One request. `id` and the session are the caller's names; `timeout_seconds` counts from its submission."""

    id: str
    input: str
    session_id: str = ""
    timeout_seconds: float = 60.0
    job_id: str = ""
    input_extension: str = ""


class PoolPhase(Enum):
    """STARTING until its first kernel is ready; FAILED when kernels cannot start; ABSENT when there is no pool."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True)
class PoolState:
    """`reason` says why it FAILED, with the kernel's last words, or what it waits for, also where it is READY."""

    phase: PoolPhase
    reason: str = ""


@dataclass(frozen=True)
class KernelStatistics:
    """One kernel. `status` is starting, idle, busy, ending or ended; the numbers are tasks."""

    id: str
    host: str
    status: str
    total: int
    running: int
    finished: int
    failed: int


@dataclass(frozen=True)
class PoolStatistics:
    """A pool now. Clients are sessions with a task that waits or runs; rates are over the last ten seconds."""

    clients: int = 0
    pending: int = 0
    requests_per_second: float = 0.0
    input_bytes_per_second: float = 0.0
    kernels: tuple[KernelStatistics, ...] = ()


class TaskError(Exception):
    """A task has no output; the text says why, for people."""


class QueueFullError(TaskError):
    """Too many tasks, or bytes of them, wait already; try again later."""


class TaskTimeoutError(TaskError):
    """It, or its batch, took longer than it may."""


class KernelFailedError(TaskError):
    """The kernel raised, set no output, or ended over it; or kernels of the model cannot start."""


class NotStartedError(TaskError):
    """There is no pool for the model, or it takes no tasks any more."""


class KernelPools(Protocol):
    """The kernels of all models of this service; `engine.pools.KernelPools` is the real one."""

    async def ensure(self, launch: KernelLaunch) -> None:
        """Have a pool for it. One that is there stays as it is, FAILED, too, until it was drained."""

    async def drain(self, uid: str) -> None:
        """Take no new task, answer what was accepted, shut kernels down; returns when all of it has gone."""

    def state(self, uid: str) -> PoolState:
        """What became of the pool."""

    async def submit(self, uid: str, task: KernelTask) -> str:
        """The task's output; TaskError says why there is none. Cancelling drops the task where it waits."""

    def statistics(self, uid: str) -> PoolStatistics:
        """Of the pool now; empty when there is none."""

    async def close(self) -> None:
        """End all kernels: the service ends."""
