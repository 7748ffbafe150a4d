"""The daemon thread that tells the platform what the spool holds."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workerkit.spool import (
    OFFSET_FILE,
    acknowledged,
    not_finite_series,
    read_metrics,
    read_report,
    warning_of,
    write_atomically,
)

log = logging.getLogger(__name__)

# Seldom enough that on a small machine it takes nothing from the ranks that one could measure.
PUSH_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 5.0
CALL_SECONDS = 5.0


@dataclass
class Push:
    """Sends the newest report and the metrics not yet acknowledged; repeats are harmless, both ends are idempotent."""

    job_id: str
    attempt: int
    token: str
    directory: Path
    scheduling_address: str = ""
    training_address: str = ""
    _wake: threading.Event = field(default_factory=threading.Event, repr=False)
    _closing: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _sent_report: str = field(default="", repr=False)
    _channels: dict[str, Any] = field(default_factory=dict, repr=False)

    def start(self) -> None:
        """Start pushing in the background."""
        self._thread = threading.Thread(target=self._run, name="dlmesh-push", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    def close(self, seconds: float) -> None:
        """Push what is left, for `seconds` at most."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        failures = 0
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                self._push_all()
                failures = 0
            except Exception as error:
                failures += 1
                log.debug("reporting is delayed: %s", error)
                self._wake.set()
            if failures == 0 and closing:
                break
            # A wake does not shorten the pause: it bounds how often a fast program is pushed.
            pause = PUSH_SECONDS if not failures else min(PUSH_SECONDS * 2**failures, MAX_BACKOFF_SECONDS)
            if self._closing.wait(pause) and failures:
                time.sleep(PUSH_SECONDS)
        for channel in self._channels.values():
            with contextlib.suppress(Exception):
                channel.close()

    def _push_all(self) -> None:
        if self.scheduling_address:
            self._push_report()
        if self.training_address:
            while self._push_metrics():
                pass

    def _push_report(self) -> None:
        report = read_report(self.directory)
        text = json.dumps(report)
        if not report or text == self._sent_report:
            return
        from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc

        request = jobs_pb2.ReportJobRequest(job_id=self.job_id, attempt=self.attempt)
        if "progress" in report:
            request.progress.CopyFrom(jobs_pb2.Progress(**report["progress"]))
        if "result" in report:
            request.result_json = json.dumps(report["result"])
        if warning := warning_of(report):
            request.warning = warning
        if (names := not_finite_series(report)) is not None:
            request.not_finite.CopyFrom(jobs_pb2.SeriesNames(names=names))
        stub = jobs_pb2_grpc.JobServiceStub(self._channel(self.scheduling_address))
        stub.ReportJob(request, metadata=self._headers(), timeout=CALL_SECONDS)
        self._sent_report = text

    def _push_metrics(self) -> bool:
        offset = acknowledged(self.directory)
        points, end = read_metrics(self.directory, offset)
        if end == offset:
            return False
        from dlmesh.training.v1 import metrics_pb2, metrics_pb2_grpc

        request = metrics_pb2.RecordMetricsRequest(job_id=self.job_id, attempt=self.attempt)
        for point in points:
            request.points.add(series=point.series, step=point.step, value=point.value, time=point.time)
        stub = metrics_pb2_grpc.MetricServiceStub(self._channel(self.training_address))
        stub.RecordMetrics(request, metadata=self._headers(), timeout=CALL_SECONDS)
        # After the acknowledgement: a kill in between sends the points again, and the server knows them already.
        write_atomically(self.directory / OFFSET_FILE, str(end))
        return True

    def _channel(self, address: str) -> Any:
        if address not in self._channels:
            import grpc

            self._channels[address] = grpc.insecure_channel(
                address, options=(("grpc.max_reconnect_backoff_ms", 1000), ("grpc.initial_reconnect_backoff_ms", 100))
            )
        return self._channels[address]

    def _headers(self) -> tuple[tuple[str, str], ...]:
        return (("x-dlmesh-job", self.job_id), ("x-dlmesh-job-token", self.token))
