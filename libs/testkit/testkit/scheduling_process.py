"""The scheduling service as a process of its own, for tests that end it at any moment and start it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc, scheduling_pb2, scheduling_pb2_grpc
from servicekit.identity import Identity, headers_for

START_SECONDS, STOP_SECONDS, CALL_SECONDS = 60.0, 60.0, 10.0
Answer = TypeVar("Answer")
# A call that was cut off, or that came while nobody listened; whether it was heard is not known.
_MAY_BE_REPEATED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)


class SchedulingProcess:
    """The service below `home`, on one port for all of its lives; `environment` is added to ours.

    Calls wait until somebody answers: they are repeated while the service is away.
    """

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._home = home
        self._environment = {**os.environ, "DLMESH_HOME": str(home), "DLMESH_SCHEDULING_ADDRESS": self._address}
        self._environment |= environment
        self._process: subprocess.Popen[bytes] | None = None
        # A channel that found nobody waits longer and longer before it looks again.
        again = [("grpc.max_reconnect_backoff_ms", 300), ("grpc.min_reconnect_backoff_ms", 50)]
        self._channel = grpc.insecure_channel(self._address, options=again)
        self._jobs = jobs_pb2_grpc.JobServiceStub(self._channel)
        self._groups = scheduling_pb2_grpc.InstanceGroupServiceStub(self._channel)
        self._execs = scheduling_pb2_grpc.ExecServiceStub(self._channel)
        self.log = home / "service.log"

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return 0 if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Without waiting until it answers."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "scheduling_service"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def end(self, how: signal.Signals) -> int:
        """Send it the signal and wait for its end; the exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(STOP_SECONDS)

    def close(self) -> None:
        """End it if it runs still."""
        self._channel.close()
        if self.pid:
            self.end(signal.SIGKILL)

    def create_group(self, settings: scheduling_pb2.InstanceGroupSettings) -> None:
        """As an administrator."""
        request = scheduling_pb2.CreateInstanceGroupRequest(group=settings)
        self._call(lambda **how: self._groups.CreateInstanceGroup(request, **how), Identity("Admin", is_admin=True))

    def start_exec(self, request: scheduling_pb2.StartExecRequest) -> scheduling_pb2.ExecDetail:
        """As a user, with a body of one piece; called again when it was cut off, so for a service that stays."""
        return self._call(lambda **how: self._execs.StartExec(iter([request]), **how), Identity("alice"))

    def exec_state(self, task_id: str) -> str:
        request = scheduling_pb2.GetExecRequest(id=task_id)
        return str(self._call(lambda **how: self._execs.GetExec(request, **how), Identity("alice")).state)

    def submit(self, job_id: str, spec: jobs_pb2.JobSpec) -> jobs_pb2.Job:
        request = jobs_pb2.SubmitJobRequest(job_id=job_id, spec=spec)
        return self._call(lambda **how: self._jobs.SubmitJob(request, **how)).job

    def stop_job(self, job_id: str) -> jobs_pb2.Job:
        request = jobs_pb2.StopJobRequest(job_id=job_id)
        return self._call(lambda **how: self._jobs.StopJob(request, **how)).job

    def jobs(self, job_ids: Collection[str]) -> Sequence[jobs_pb2.Job]:
        request = jobs_pb2.GetJobsRequest(job_ids=job_ids)
        return self._call(lambda **how: self._jobs.GetJobs(request, **how)).jobs

    def _call(self, call: Callable[..., Answer], identity: Identity | None = None) -> Answer:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(FileNotFoundError):
                secret = (self._home / "secret").read_text().strip()
                headers = headers_for(identity or Identity.service("training"), secret, "training")
                try:
                    return call(metadata=tuple(headers), timeout=CALL_SECONDS)
                except grpc.RpcError as error:
                    if error.code() not in _MAY_BE_REPEATED or time.monotonic() > deadline:
                        raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduling service does not answer; see {self.log}")
            time.sleep(0.05)
