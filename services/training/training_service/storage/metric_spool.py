"""What workers spooled in the attempt folders of their job."""

from __future__ import annotations

import asyncio
import logging
import re
import stat
from pathlib import Path

from workerkit.spool import acknowledged, read_metrics

from training_service.domain.metrics import MetricPoint, SpoolPlace

log = logging.getLogger(__name__)

_ATTEMPT = re.compile(r"attempt-([1-9]\d{0,8})")


class DiskMetricSpool:
    """Reads `attempt-N` folders side by side, N up to that of the newest attempt: programs can make others."""

    async def read(
        self, job_id: str, run_directory: str, since: SpoolPlace
    ) -> tuple[list[MetricPoint], SpoolPlace | None]:
        return await asyncio.to_thread(self._read, job_id, Path(run_directory), since)

    def _read(self, job_id: str, run_directory: Path, since: SpoolPlace) -> tuple[list[MetricPoint], SpoolPlace | None]:
        match = _ATTEMPT.fullmatch(run_directory.name)
        newest = int(match[1]) if match else 0
        for attempt in range(since.attempt, newest + 1):
            directory = run_directory.with_name(f"attempt-{attempt}")
            offset = since.offset if attempt == since.attempt else None
            try:
                if not stat.S_ISDIR(directory.lstat().st_mode):
                    raise NotADirectoryError(f"{directory} is no folder")
                offset = acknowledged(directory) if offset is None else offset
                found, end = read_metrics(directory, offset)
            except FileNotFoundError:
                continue
            except Exception as error:
                # Its points are lost; the others are not, nor does the run wait for them.
                log.warning("metrics of attempt %d of job %s cannot be read: %s", attempt, job_id, error)
                continue
            if end > offset:
                points = [MetricPoint(job_id, attempt, p.series, p.step, p.value, p.time) for p in found]
                return points, SpoolPlace(attempt, end)
        return [], None
