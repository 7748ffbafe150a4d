"""`make bench`: what the platform costs, measured against doing without it, side by side in one run.

Prints the table and writes it between the markers of docs/benchmarks.md. Takes a few minutes on two cores.
"""

from __future__ import annotations

import json
import os
import platform as machine
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from dlmesh_platform.client import API
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import TEMPLATE, MainJob, write_digits
from rich.console import Console
from rich.table import Table
from servicekit.identity import Identity, headers_for

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
WARMUP_CALLS, ROUNDS, CALLS_PER_ROUND = 300, 10, 300
PAIRS = 3
EPOCHS = 12
SKIPPED_STEPS = 10

# Notes when each optimizer step ended, then runs the template's own program. The same file runs in both places.
TIMED_MAIN = '''"""The template's program with a note of when each optimizer step ended."""
import json, os, runpy, sys, time
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook

ended = []
register_optimizer_step_post_hook(lambda *_: ended.append(time.time()))
sys.path.insert(0, os.getcwd())
try:
    runpy.run_path("program.py", run_name="__main__")
finally:
    if os.environ.get("RANK", "0") == "0":
        folder = Path(sys.argv[sys.argv.index("--train_dir") + 1])
        note = {"ended": ended, "argv": sys.argv, "environment": dict(os.environ), "cwd": os.getcwd()}
        (folder / "timed.json").write_text(json.dumps(note))
'''


@dataclass(frozen=True)
class Row:
    """One line of the report; `target` is what the project promises, `met` whether it was kept."""

    what: str
    measured: str
    against: str
    ratio: str
    target: str
    met: bool


def measure_small_get(platform: RunningPlatform) -> Row:
    """One template by name, one connection, through Envoy and straight from the service; rounds alternate."""
    rest = _rest_call(platform)
    direct = _direct_call(platform)
    for call in (rest, direct):
        _time_calls(call, WARMUP_CALLS)
    through, straight = [], []
    for _ in range(ROUNDS):
        through += _time_calls(rest, CALLS_PER_ROUND)
        straight += _time_calls(direct, CALLS_PER_ROUND)
    envoy_ms, direct_ms = statistics.median(through) * 1e3, statistics.median(straight) * 1e3
    ratio = envoy_ms / direct_ms
    return Row(
        "small GET, p50",
        f"{envoy_ms:.2f} ms through Envoy",
        f"{direct_ms:.2f} ms direct gRPC",
        f"{ratio:.2f}",
        "at most 1.5",
        ratio <= 1.5,
    )


def _rest_call(platform: RunningPlatform) -> Callable[[], None]:
    """A kept connection and a request rendered once: what is timed is the server, not a client library."""
    host, port = platform.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    credentials = b64encode(f"Admin:{(platform.home / 'admin_password').read_text().strip()}".encode()).decode()
    path = f"{API}/modeltemplates/{TEMPLATE}"
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Basic {credentials}\r\n\r\n".encode()

    def call() -> None:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += _receive(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(received.decode(errors="replace"))
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += _receive(connection)

    return call


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise ConnectionError("the server closed the connection")
    return received


def _direct_call(platform: RunningPlatform) -> Callable[[], None]:
    address = json.loads((platform.home / "run" / "endpoints.json").read_text())["models"]
    secret = (platform.home / "secret").read_text().strip()
    stub = models_pb2_grpc.ModelTemplateServiceStub(grpc.insecure_channel(address))
    metadata = tuple(headers_for(Identity("Admin", is_admin=True), secret, "gateway"))
    request = models_pb2.GetModelTemplateRequest(name=TEMPLATE)

    def call() -> None:
        stub.GetModelTemplate(request, metadata=metadata)

    return call


def _time_calls(call: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def measure_memory(platform: RunningPlatform) -> Row:
    """Proportional set size: a page shared by n processes counts 1/n for each."""
    time.sleep(5)
    root = psutil.Process(platform.process.pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        line = " ".join(process.cmdline())
        if "zygote" not in line and "triton" not in line:
            total += process.memory_full_info().pss
    megabytes = total / 1e6
    return Row(
        "idle memory (PSS), without Triton and the warm pool",
        f"{megabytes:.0f} MB",
        "",
        "",
        "at most 900 MB",
        megabytes <= 900,
    )


def measure_main_job(platform: RunningPlatform) -> Row:
    """From POST /datasets to the last prediction."""
    started = time.monotonic()
    job = MainJob(platform.client(), "digits", prefix="main")
    job.create_dataset()
    job.await_dataset()
    job.create_model()
    job.start_training()
    job.await_training()
    job.start_validation()
    validation = job.await_validation()
    job.create_inference()
    job.start_prediction(sorted((platform.home / "held-out").glob("*.png")), "main-ten")
    job.await_prediction("main-ten")
    seconds = time.monotonic() - started
    return Row(
        "main job, after set-up",
        f"{seconds:.1f} s (Top1 {validation.top1:.4f})",
        "",
        "",
        "at most 120 s",
        seconds <= 120 and validation.top1 >= 0.95,
    )


@dataclass(frozen=True)
class Timing:
    """Of one run of the timed program."""

    first_step_seconds: float
    steps_per_second: float


def measure_training(platform: RunningPlatform) -> list[Row]:
    """The same program on two ranks, by the platform and by bare torchrun, alternating."""
    job = _timed_model(platform)
    _platform_run(platform, job, "warm-up")
    ours, bare = [], []
    for pair in range(PAIRS):
        timing, note = _platform_run(platform, job, f"run{pair}")
        ours.append(timing)
        bare.append(_torchrun(note, platform.home / "bare" / str(pair)))
    start, start_bare = (statistics.median(run.first_step_seconds for run in runs) for runs in (ours, bare))
    rate, rate_bare = (statistics.median(run.steps_per_second for run in runs) for runs in (ours, bare))
    return [
        Row(
            "submit to first optimizer step, 2 ranks",
            f"{start:.2f} s",
            f"{start_bare:.2f} s torchrun",
            f"{start / start_bare:.2f}",
            "at most 0.5",
            start / start_bare <= 0.5,
        ),
        Row(
            "training steps/s, 2 ranks",
            f"{rate:.1f}",
            f"{rate_bare:.1f} torchrun",
            f"{rate / rate_bare:.3f}",
            "at least 0.98",
            rate / rate_bare >= 0.98,
        ),
    ]


def _timed_model(platform: RunningPlatform) -> MainJob:
    client = platform.client()
    builtin = Path(client.get(f"/modeltemplates/{TEMPLATE}")["path"])
    folder = platform.home / "data" / "timed-template"
    shutil.copytree(builtin, folder, ignore=shutil.ignore_patterns("template.json", "__pycache__"))
    (folder / "main.py").rename(folder / "program.py")
    (folder / "main.py").write_text(TIMED_MAIN)
    client.post("/modeltemplates", {"name": "timed", "path": "timed-template", "framework": "PyTorch"})
    client.post(
        "/models",
        {
            "name": "timed",
            "templatename": "timed",
            "dataset": "main",
            "sig": "local",
            "accelerator": "Native",
            "type": "Training",
            "batchsize": 64,
            "hyperparameter": {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": EPOCHS},
        },
    )
    # Seldom: on a small machine each look takes time from the ranks.
    return MainJob(client, "digits", prefix="timed", poll_seconds=2.0)


def _platform_run(platform: RunningPlatform, job: MainJob, name: str) -> tuple[Timing, dict[str, Any]]:
    submitted = time.time()
    job.start_training(name)
    detail = job.await_training(name=name)
    note = json.loads(next((platform.home / "trainings" / detail["uid"]).rglob("timed.json")).read_text())
    return _timing(note, submitted), note


def _torchrun(note: dict[str, Any], folder: Path) -> Timing:
    """What a user would type in the training's folder, with the program's environment less the platform's job."""
    folder.mkdir(parents=True)
    own = ("DLMESH_JOB", "DLMESH_SUPERVISED", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "NODE_RANK")
    environment = {key: value for key, value in note["environment"].items() if not key.startswith(own)}
    arguments = list(note["argv"][1:])
    arguments[arguments.index("--train_dir") + 1] = str(folder)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511", "main.py", *arguments]
    submitted = time.time()
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            [sys.executable, *command], cwd=note["cwd"], env=environment, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise RuntimeError(f"torchrun failed:\n{(folder / 'output.txt').read_text()[-3000:]}")
    return _timing(json.loads((folder / "timed.json").read_text()), submitted)


def _timing(note: dict[str, Any], submitted: float) -> Timing:
    ended = note["ended"]
    steady = ended[SKIPPED_STEPS:]
    return Timing(ended[0] - submitted, (len(steady) - 1) / (steady[-1] - steady[0]))


def write_report(rows: list[Row]) -> None:
    """Replace what stands between the markers."""
    versions = f"Python {machine.python_version()}, {os.cpu_count()} CPUs, {machine.system()} {machine.machine()}"
    lines = [
        f"Measured {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} with `make bench`; {versions}.",
        "",
        "| what | dlmesh | against | ratio | promised | kept |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    text = REPORT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    REPORT.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def _cells(row: Row) -> tuple[str, ...]:
    return row.what, row.measured, row.against, row.ratio, row.target, "yes" if row.met else "NO"


def main() -> int:
    """Exit 1 when a promise was not kept."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        write_digits(home / "data" / "digits", home / "held-out")
        with launch(home) as platform:
            rows.append(measure_memory(platform))
            rows.append(measure_small_get(platform))
            rows.append(measure_main_job(platform))
            rows += measure_training(platform)
    table = Table("what", "dlmesh", "against", "ratio", "promised", "kept")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
    write_report(rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
