"""What the processes of attempts take, for people who look."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduling_service.domain.attempt_facts import AttemptFacts, ProcessFacts
from scheduling_service.engines.local import processes, records, usage
from scheduling_service.engines.local.keeper import LOG_FILE

# A page of applications is one look.
LOOK_SECONDS = 0.5
GPU_LOOK_SECONDS, GPU_ANSWER_SECONDS = 2.0, 5.0
MEGABYTE = 1e6
KEPT_LOOKS = 4096


@dataclass(frozen=True)
class Gpus:
    """What nvidia-smi says: by device its memory (MB) and utilisation (per cent), and memory (MB) by device and pid."""

    devices: Mapping[int, tuple[float, float]]
    held: Mapping[tuple[int, int], float]


NO_GPUS = Gpus({}, {})


class Descriptions:
    """Describes attempts; remembers the last look at each process, and what the machine looked like a moment ago."""

    def __init__(self, nvidia_smi: str | None) -> None:
        self._nvidia_smi = nvidia_smi
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._snapshot = usage.Snapshot({}, {})
        self._gpus_looked_at = float("-inf")
        self._gpus = NO_GPUS
        # By pid and start time of the top of a tree: when we looked, its processor time, and what we said then.
        self._looks: dict[tuple[int, int], tuple[float, float, float]] = {}

    def describe(
        self,
        directory: Path,
        host: str,
        spec: Mapping[str, Any],
        keeper: Mapping[str, Any] | None,
        ranks: Mapping[str, Any] | None,
        outcome: Mapping[str, Any] | None,
    ) -> AttemptFacts:
        """From the files of an attempt, as far as there are any; blocks for some milliseconds."""
        with self._lock:
            known = records.process_of(keeper)
            has_ended = outcome is not None or known is None or known.boot_id != processes.boot_id()
            found = usage.Snapshot({}, {}) if has_ended else self._look()
            host = str((outcome or {}).get("host") or (keeper or {}).get("host") or host)
            log = str(records.folder(directory) / LOG_FILE)
            group = (ranks or {}).get("group")
            rows = {row["rank"]: row for row in records.rows_of(outcome or ranks)}
            executors = []
            # What ranks left behind hangs from the keeper and counts with nobody.
            for rank in range(spec.get("ranks", 0)):
                row = rows.get(rank, {})
                pid = row.get("pid") or 0
                container = f"{group}/rank-{rank}" if group and not has_ended else str(pid or "")
                pids = self._tree(found, pid, row.get("start_time"))
                gpu_memory, gpu_utilization = self._gpu_facts(spec, rank, pids)
                executors.append(
                    ProcessFacts(
                        str(rank),
                        host=host,
                        container_id=container,
                        cores_used=self._cores(found, pid, pids),
                        memory_mb=usage.memory_bytes(pids, found) / MEGABYTE,
                        stdout=str(directory / f"rank-{rank}.out"),
                        stderr=str(directory / f"rank-{rank}.err"),
                        gpu_memory_mb=gpu_memory,
                        gpu_utilization=gpu_utilization,
                    )
                )
            pid = known.pid if known else 0
            alone = self._tree(found, pid, known.start_time if known else None) & {pid}
            driver = ProcessFacts(
                "keeper",
                host=host,
                container_id=str(pid or ""),
                cores_used=self._cores(found, pid, alone, alone=True),
                memory_mb=usage.memory_bytes(alone, found) / MEGABYTE,
                stdout=log,
                stderr=log,
            )
            return AttemptFacts(driver, tuple(executors))

    def _look(self) -> usage.Snapshot:
        now = time.monotonic()
        if now - self._looked_at > LOOK_SECONDS:
            self._snapshot, self._looked_at = usage.snapshot(), now
        return self._snapshot

    def _tree(self, found: usage.Snapshot, pid: int, start_time: int | None) -> set[int]:
        process = found.processes.get(pid)
        return found.tree(pid) if process is not None and process.start_time == start_time else set()

    def _cores(self, found: usage.Snapshot, pid: int, pids: set[int], *, alone: bool = False) -> float:
        """Kept busy since the last look; at the first since it was started."""
        if pid not in pids:
            return 0.0
        process = found.processes[pid]
        key = (pid, process.start_time)
        # The keeper's ended children are its ranks' affair.
        used = process.own_cpu_seconds if alone else found.cpu_seconds(pids)
        looked_at, used_then, said = self._looks.get(key, (_started_at(process.start_time), 0.0, 0.0))
        seconds = self._looked_at - looked_at
        if seconds > 0:
            said = max(0.0, used - used_then) / seconds
            if len(self._looks) >= KEPT_LOOKS:
                self._looks.clear()
            self._looks[key] = (self._looked_at, used, said)
        return round(said, 3)

    def _gpu_facts(self, spec: Mapping[str, Any], rank: int, pids: set[int]) -> tuple[float, float]:
        if self._nvidia_smi is None or not pids:
            return 0.0, 0.0
        now = time.monotonic()
        if now - self._gpus_looked_at > GPU_LOOK_SECONDS:
            self._gpus, self._gpus_looked_at = ask_nvidia_smi(self._nvidia_smi), now
        placed: Sequence[int] = (spec.get("gpus") or [()] * (rank + 1))[rank]
        held = {device for device, pid in self._gpus.held if pid in pids}
        memory = sum(megabytes for (_, pid), megabytes in self._gpus.held.items() if pid in pids)
        if not held:
            # In a container the pids that nvidia-smi knows are not ours.
            memory = sum(self._gpus.devices.get(device, (0.0, 0.0))[0] for device in placed)
        devices = held or set(placed)
        return memory, sum(self._gpus.devices.get(device, (0.0, 0.0))[1] for device in devices)


def ask_nvidia_smi(program: str) -> Gpus:
    """What the GPUs of this machine are doing; nothing when `program` does not answer."""
    devices = _rows(program, "--query-gpu=index,gpu_uuid,memory.used,utilization.gpu")
    index_of = {row[1]: int(row[0]) for row in devices if len(row) == 4 and row[0].isdigit()}
    processes_ = _rows(program, "--query-compute-apps=gpu_uuid,pid,used_memory")
    return Gpus(
        {int(row[0]): (_number(row[2]), _number(row[3])) for row in devices if len(row) == 4 and row[0].isdigit()},
        {
            (index_of[row[0]], int(row[1])): _number(row[2])
            for row in processes_
            if len(row) == 3 and row[0] in index_of and row[1].isdigit()
        },
    )


def _rows(program: str, query: str) -> list[list[str]]:
    try:
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=GPU_ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]


def _number(text: str) -> float:
    """`[N/A]` and the like are 0."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _started_at(start_time: int) -> float:
    """Of the monotonic clock, which counts from the boot as start times do."""
    return start_time / usage.TICKS_A_SECOND
