"""From SubmitJob to the first byte that a trivial program prints, on the warm local engine.

`python bench/exec_latency.py [JOBS]` prints where the time went; bare starts of the interpreter are measured beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from report import Row, announce
from scheduling_service.engines.local.engine import warm_socket
from servicekit.identity import Identity, headers_for

JOBS = 40
START_SECONDS = 120.0
MOST_MS = 150.0
PROGRAM = "import time; print(time.time(), flush=True)"


@dataclass(frozen=True)
class Launched:
    """What one job took, in milliseconds from the call of SubmitJob."""

    answered_ms: float
    keeper_ms: float
    first_line_ms: float


def measure_exec_latency(jobs: int = JOBS) -> list[Row]:
    """SubmitJob to the first line, against bare starts of the interpreter in turns."""
    announce(f"{jobs} trivial jobs, one after the other, on the warm engine")
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        with scheduling_service(Path(folder)) as submit:
            launched, bare, with_torch = in_turns(Path(folder), submit, jobs)
    first_lines = [each.first_line_ms for each in launched]
    median = statistics.median(first_lines)
    print(
        f"median ms: answered {statistics.median(each.answered_ms for each in launched):.1f}, "
        f"keeper {statistics.median(each.keeper_ms for each in launched):.1f}, first line {median:.1f}, "
        f"p95 {sorted(first_lines)[int(0.95 * len(first_lines))]:.1f}; "
        f"bare {statistics.median(bare):.1f}, with torch {statistics.median(with_torch):.1f}"
    )
    return [
        Row(
            "submit -> first line of a trivial job on the warm engine, p50",
            f"{median:.0f} ms",
            f"{statistics.median(bare):.0f} ms bare python, {statistics.median(with_torch):.0f} ms with import torch",
            f"{median / statistics.median(with_torch):.2f}",
            f"at most {MOST_MS:.0f} ms",
            median <= MOST_MS,
        )
    ]


def in_turns(
    folder: Path, submit: Callable[[str, Path], float], jobs: int
) -> tuple[Sequence[Launched], Sequence[float], Sequence[float]]:
    """Jobs with a bare start after every fourth; what they took in milliseconds."""
    program = folder / "work" / "trivial.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    launched, bare, with_torch = [], [], []
    for number in range(jobs + 2):
        job = run_job(folder, submit, f"job{number}", program)
        # The first two are slow: nothing has been used yet.
        if number >= 2:
            launched.append(job)
        if number % 4 == 0:
            bare.append(run_bare("print()"))
            with_torch.append(run_bare("import torch; print()"))
    return launched, bare, with_torch


def run_job(folder: Path, submit: Callable[[str, Path], float], job_id: str, program: Path) -> Launched:
    """Submit it and read when it printed."""
    directory = folder / "jobs" / job_id / "attempt-1"
    records = directory.with_name("keeper-attempt-1")
    began = time.time()
    answered = submit(job_id, program)
    deadline = began + START_SECONDS
    while time.time() < deadline:
        # Looked for outside of the timed path: the program prints the time of its print.
        with contextlib.suppress(OSError, ValueError):
            printed = float((directory / "rank-0.out").read_text())
            keeper = (records / "keeper.json").stat().st_mtime
            while not (records / "outcome.json").exists():
                time.sleep(0.005)
            # The queue settles the job, as it does for people who send one after the other.
            time.sleep(0.15)
            return Launched(answered - began * 1e3, (keeper - began) * 1e3, (printed - began) * 1e3)
        time.sleep(0.005)
    raise TimeoutError(f"{job_id} printed nothing: {(directory / 'rank-0.err').read_text()}")


def run_bare(program: str) -> float:
    """Milliseconds until the interpreter's first byte."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return (time.perf_counter() - began) * 1e3


@contextlib.contextmanager
def scheduling_service(home: Path) -> Iterator[Callable[[str, Path], float]]:
    """The service as a process of its own, warm; yields what submits a program and says when it was answered (ms)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "DLMESH_HOME": str(home), "DLMESH_SCHEDULING_ADDRESS": address, "DLMESH_SLOTS": "4"}
    (home / "work").mkdir()
    (home / "address").write_text(address)
    with (home / "service.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "scheduling_service"], env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not warm_socket(home).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((home / "service.log").read_text()[-2000:])
            time.sleep(0.05)
        channel = grpc.insecure_channel(address)
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        secret = (home / "secret").read_text().strip()
        metadata = tuple(headers_for(Identity.service("training"), secret, "training"))

        def submit(job_id: str, program: Path) -> float:
            spec = jobs_pb2.JobSpec(
                name=job_id,
                kind="exec",
                owner="Admin",
                ranks=1,
                command=["python", str(program)],
                working_directory=str(program.parent),
                warm=True,
            )
            stub.SubmitJob(jobs_pb2.SubmitJobRequest(job_id=job_id, spec=spec), metadata=metadata, timeout=10)
            return time.time() * 1e3

        yield submit
        channel.close()
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    for row in measure_exec_latency(int(sys.argv[1]) if len(sys.argv) > 1 else JOBS):
        print(json.dumps(row.cells))
