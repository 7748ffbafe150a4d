"""Between the queue and the engines: a job's attempt with everything its ranks find in their environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from servicekit.folders import remove_folder
from servicekit.identity import job_token
from workerkit.spool import not_finite_series, open_plain, open_plain_below, read_report, warning_of

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Progress, Reported
from scheduling_service.engines.base import Attempt, AttemptFacts, Engine, Observation
from scheduling_service.engines.environment import inherited

# Programs of the platform's own, which publish what they make where users may not write.
KINDS_OF_OURS = ("import",)
NO_GPU = "no GPU in this group, runs on CPU slots"
TAIL_BYTES = 16 * 1024
TAIL_CHARACTERS, LINE_CHARACTERS = 2000, 500


class JobFiles:
    """The directories of jobs below `$DLMESH_HOME/jobs`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, job_id: str) -> Path:
        return self._root / job_id

    def attempt(self, job: Job) -> Path:
        return self.of(job.id) / f"attempt-{job.attempt}"

    def report(self, job: Job) -> Reported:
        report = read_report(self.attempt(job))
        return Reported(
            Progress(**report["progress"]) if "progress" in report else None,
            json.dumps(report["result"]) if "result" in report else None,
            warning_of(report) or None,
            not_finite_series(report),
        )

    def tail(self, job: Job, rank: int, lines: int) -> str:
        for name in (f"rank-{rank}.err", f"rank-{rank}.out"):
            text = last_lines(self.attempt(job) / name, lines)
            if text:
                return text
        return ""

    def open_output(self, job: Job, path: str) -> BinaryIO:
        return open_plain_below(self.of(job.id), Path(path))

    def remove(self, job_id: str) -> None:
        remove_folder(self.of(job_id))


def last_lines(path: Path, lines: int) -> str:
    """The last lines of a file, as many as people read: long ones are cut, and together they have 2,000 characters."""
    try:
        with open_plain(path) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    shown: list[str] = []
    room = TAIL_CHARACTERS
    for line in reversed(text.splitlines()[-lines:]):
        shown.append(line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}...")
        room -= len(shown[-1])
        if room < 0:
            shown.pop()
            break
    return "\n".join(reversed(shown)).strip()


class EngineRunner:
    """Implements the queue's `Runner` on the engines, by their names."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        files: JobFiles,
        secret: str,
        peers: Mapping[str, str],
        environ: Mapping[str, str],
        data_roots: Sequence[Path] = (),
    ) -> None:
        self._engines, self._files, self._secret, self._peers = engines, files, secret, peers
        self._data_roots = data_roots
        self._inherited = inherited(environ)

    async def launch(self, job: Job, group: InstanceGroup) -> None:
        spec = job.spec
        directory = self._files.attempt(job)
        await self._engines[group.engine].launch(
            Attempt(
                job_id=job.id,
                number=job.attempt,
                directory=directory,
                ranks=job.current_ranks,
                gpus_per_rank=spec.gpus_per_rank,
                command=spec.command,
                environment=self._environment(job, directory),
                working_directory=spec.working_directory,
                grace_seconds=spec.grace_seconds,
                max_seconds=spec.max_seconds,
                warm=spec.warm,
                max_silent_seconds=spec.max_silent_seconds,
                max_disk_bytes=spec.max_disk_bytes,
                # None when it asked for none: it sees none of the machine's then.
                gpus=job.gpus,
                warning=NO_GPU if spec.gpus_of_rank and not job.gpus else "",
                name=spec.application_name or spec.name,
                memory_bytes_per_rank=spec.memory_bytes_per_rank,
                cores_per_rank=spec.cores_per_rank,
                execution_user="" if spec.kind in KINDS_OF_OURS else group.execution_user,
                data_roots=self._data_roots,
                master_url=group.master_url,
                options=group.engine_options,
            )
        )

    def due(self, running: Iterable[Job]) -> Iterable[Job]:
        # Engines tell nobody; looking is cheap.
        return running

    async def observe(self, job: Job, group: InstanceGroup) -> Observation:
        return await self._engines[group.engine].observe(self._files.attempt(job))

    async def stop(self, job: Job, group: InstanceGroup) -> None:
        await self._engines[group.engine].stop(self._files.attempt(job))

    def names(self) -> Collection[str]:
        return self._engines.keys()

    def version(self, engine: str) -> str:
        return self._engines[engine].version if engine in self._engines else ""

    def check_group(self, group: InstanceGroup) -> None:
        self._engines[group.engine].check_group(group)

    async def describe(self, job: Job, group: InstanceGroup) -> AttemptFacts:
        return await self._engines[group.engine].describe(self._files.attempt(job))

    def _environment(self, job: Job, directory: Path) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // job.current_ranks)
        if job.spec.cores_per_rank:
            threads = min(threads, math.ceil(job.spec.cores_per_rank))
        return {
            **self._inherited,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(threads),
            **job.spec.environment,
            **({"DLMESH_MAX_WORKERS": str(job.spec.ranks)} if job.spec.is_elastic else {}),
            "DLMESH_JOB_ID": job.id,
            "DLMESH_JOB_ATTEMPT": str(job.attempt),
            "DLMESH_JOB_TOKEN": job_token(self._secret, job.id),
            "DLMESH_JOB_DIR": str(directory),
            "DLMESH_SCHEDULING_ADDRESS": self._peers["scheduling"],
            "DLMESH_TRAINING_ADDRESS": self._peers["training"],
        }
