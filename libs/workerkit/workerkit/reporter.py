"""The worker's side of reporting."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from workerkit.heartbeat import heartbeat
from workerkit.push import Push
from workerkit.spool import (
    MAX_SERIES,
    MAX_SERIES_LENGTH,
    REPORT_FILE,
    append_metrics,
    earlier_not_finite,
    write_atomically,
)

log = logging.getLogger(__name__)

SPOOL_SECONDS = 0.5
FLUSH_SECONDS = 5.0


class Reporter:
    """Reports one attempt of a job. Outside of a job, and on ranks other than 0, every method does nothing, but that
    `progress` and `metrics` are heartbeats on every rank."""

    def __init__(self, directory: Path | None, push: Push | None = None) -> None:
        self._directory = directory
        self._push = push
        self._report: dict[str, Any] = {}
        # Counts as soon as this attempt is known to go on behind it: what it goes back over is discarded.
        self._earlier = earlier_not_finite(directory) if directory is not None else {}
        self._spooled_at = 0.0
        self._lock = threading.Lock()
        if push is not None:
            push.start()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Reporter:
        """The reporter of the job this process belongs to (variables DLMESH_JOB_* are set by the engine)."""
        job_id, directory = environ.get("DLMESH_JOB_ID"), environ.get("DLMESH_JOB_DIR")
        if not job_id or not directory or environ.get("RANK", "0") != "0":
            return cls(None)
        push = Push(
            job_id=job_id,
            attempt=int(environ.get("DLMESH_JOB_ATTEMPT", "1")),
            token=environ.get("DLMESH_JOB_TOKEN", ""),
            directory=Path(directory),
            scheduling_address=environ.get("DLMESH_SCHEDULING_ADDRESS", ""),
            training_address=environ.get("DLMESH_TRAINING_ADDRESS", ""),
        )
        return cls(Path(directory), push)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def progress(self, done: float, total: float, phase: str = "") -> None:
        """`done` of `total` units (iterations, images); call it as often as you like."""
        heartbeat()
        self._remember({"progress": {"done": float(done), "total": float(total), "phase": phase}}, now=done >= total)

    def result(self, result: Any) -> None:
        """What the job made, JSON-serialisable; the last one counts."""
        self._remember({"result": result}, now=True)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point for each series. Values that are not finite are left out, and the report names their series."""
        heartbeat()
        if self._directory is None:
            return
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        try:
            append_metrics(self._directory, finite, step)
        except OSError as error:
            log.warning("metrics at step %d could not be written: %s", step, error)
        self._look_for_numbers(values, finite, step)
        if self._push is not None:
            self._push.wake()

    def close(self) -> None:
        """Write what is remembered and push it, waiting a few seconds at most."""
        with contextlib.suppress(OSError):
            self._spool()
        if self._push is not None:
            self._push.close(FLUSH_SECONDS)

    def _look_for_numbers(self, values: Mapping[str, float], finite: Mapping[str, float], step: int) -> None:
        """Keep in the report which series are no number, since when, and whether the first came back."""
        found = self._report.get("not_finite")
        known = self._report.get("not_finite_since", {})
        since = {name: at for name, at in known.items() if name not in finite}
        if earlier := self._earlier:
            if "not_finite" in earlier and earlier["not_finite"]["step"] < step:
                found = earlier["not_finite"]
            before_us = earlier.get("not_finite_since", {}).items()
            since |= {name: at for name, at in before_us if at < step and name not in finite}
            self._earlier = {}
        if found and found["lasts"] and found["series"] in finite:
            found = {**found, "lasts": False}
        odd = next((name for name in values if name not in finite), None)
        for name in values:
            if name not in finite and 0 < len(name) <= MAX_SERIES_LENGTH and len(since) < MAX_SERIES:
                since.setdefault(name, int(step))
        if odd is not None and not (found and found["lasts"]):
            found = {"series": odd[:MAX_SERIES_LENGTH], "step": since.get(odd, int(step)), "lasts": True}
        facts = {"not_finite": found} if found else {}
        if since or known:
            facts["not_finite_since"] = since
        if facts:
            self._remember(facts, now=bool(since.keys() - known.keys()))

    def _remember(self, facts: dict[str, Any], *, now: bool) -> None:
        if self._directory is None:
            return
        with self._lock:
            self._report.update(facts)
        if now or time.monotonic() - self._spooled_at >= SPOOL_SECONDS:
            try:
                self._spool()
            except OSError as error:
                log.warning("the report could not be written: %s", error)
        if self._push is not None:
            self._push.wake()

    def _spool(self) -> None:
        if self._directory is None or not self._report:
            return
        self._spooled_at = time.monotonic()
        with self._lock:
            text = json.dumps(self._report)
        write_atomically(self._directory / REPORT_FILE, text)
