"""What workers spooled in the attempt folders of their job."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from workerkit.spool import read_metrics

from training_service.domain.metrics import MetricPoint

_ATTEMPT = re.compile(r"attempt-(\d+)")


class DiskMetricSpool:
    """Reads `attempt-N` folders side by side."""

    async def read(self, job_id: str, run_directory: str) -> list[MetricPoint]:
        return await asyncio.to_thread(self._read, job_id, Path(run_directory).parent)

    def _read(self, job_id: str, folder: Path) -> list[MetricPoint]:
        points: list[MetricPoint] = []
        for directory in folder.glob("attempt-*"):
            match = _ATTEMPT.fullmatch(directory.name)
            offset, more = 0, match is not None
            while match and more:
                found, end = read_metrics(directory, offset)
                points += [MetricPoint(job_id, int(match[1]), p.series, p.step, p.value, p.time) for p in found]
                offset, more = end, end > offset
        return points
