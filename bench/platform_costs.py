"""What the platform costs, measured against doing without it."""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from dlmesh_platform.client import API
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import TEMPLATE, MainJob, write_digits
from report import Row, announce
from servicekit.identity import Identity, headers_for
from timed_runs import Notes, make_template, rates_in_turns, read_notes, steps_row, torchrun

WARMUP_CALLS, ROUNDS, CALLS_PER_ROUND = 300, 10, 300
PAIRS = 3
# Steps/s are measured while both run; neither may come to its end.
STARTED_EPOCHS, ENDLESS_EPOCHS = 2, 10_000
TURNS = 12


def measure_small_get(platform: RunningPlatform) -> Row:
    """One template by name, one connection, through Envoy and straight from the service; rounds alternate."""
    rest = rest_call(platform, f"{API}/modeltemplates/{TEMPLATE}")
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


def rest_call(platform: RunningPlatform, path: str) -> Callable[[], None]:
    """GET on a kept connection, rendered once: what is timed is the server, not a client library."""
    host, port = platform.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    credentials = b64encode(f"Admin:{(platform.home / 'admin_password').read_text().strip()}".encode()).decode()
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Basic {credentials}\r\n\r\n".encode()

    def call() -> None:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += _receive(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(received.decode(errors="replace"))
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        if length is None:
            # Streamed: the last chunk is empty.
            tail = body[-5:]
            while tail != b"0\r\n\r\n":
                tail = (tail + _receive(connection))[-5:]
            return
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


def measure_training(platform: RunningPlatform) -> list[Row]:
    """The same program on two ranks, by the platform and by bare torchrun: how it starts, and how fast it is."""
    job = _timed_model(platform)
    _platform_run(platform, job, "warm-up")
    starts, starts_bare = [], []
    for pair in range(PAIRS):
        announce(f"first steps: pair {pair + 1} of {PAIRS}")
        submitted = time.time()
        notes = _platform_run(platform, job, f"run{pair}")
        starts.append(notes.steps[0] - submitted)
        submitted = time.time()
        with torchrun(notes, platform.home / "bare" / str(pair)) as plain:
            starts_bare.append(plain.first_step() - submitted)
    start, start_bare = statistics.median(starts), statistics.median(starts_bare)
    return [
        Row(
            "submit to first optimizer step, 2 ranks",
            f"{start:.2f} s",
            f"{start_bare:.2f} s torchrun",
            f"{start / start_bare:.2f}",
            "at most 0.5",
            start / start_bare <= 0.5,
        ),
        _measure_steps(platform, job),
    ]


def _measure_steps(platform: RunningPlatform, job: MainJob) -> Row:
    client = platform.client()
    client.put("/models/timed", {"hyperparameter": {"epoch": ENDLESS_EPOCHS}})
    job.start_training("endless")
    training = "/models/timed/trainings/endless"
    ours = Path(client.get(training)["trainingParameters"]["path"])
    client.until(lambda: (ours / "timed.jsonl").exists() and bool(read_notes(ours)[-1].steps), seconds=60.0)
    pairs = rates_in_turns(platform, ours, turns=TURNS)
    client.put(f"{training}/stop")
    client.until(lambda: client.get(training)["trainingParameters"]["status"] == "STOPPED", seconds=60.0)
    return steps_row("training steps/s, 2 ranks", pairs, "torchrun")


def _timed_model(platform: RunningPlatform) -> MainJob:
    client = platform.client()
    make_template(platform, "timed", TEMPLATE)
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
            "hyperparameter": {
                "solvertype": "Adam",
                "learningrate": 0.001,
                "lrpolicy": "fixed",
                "epoch": STARTED_EPOCHS,
            },
        },
    )
    # Seldom: on a small machine each look takes time from the ranks.
    return MainJob(client, "digits", prefix="timed", poll_seconds=2.0)


def _platform_run(platform: RunningPlatform, job: MainJob, name: str) -> Notes:
    job.start_training(name)
    detail = job.await_training(name=name)
    (notes,) = read_notes(next((platform.home / "trainings" / detail["uid"]).rglob("timed.jsonl")).parent)
    return notes


def measure_platform() -> list[Row]:
    """What the platform costs: a fresh one, its main job, and a program with and without it."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        write_digits(home / "data" / "digits", home / "held-out")
        with launch(home) as platform:
            rows.append(measure_memory(platform))
            rows.append(measure_small_get(platform))
            rows.append(measure_main_job(platform))
            rows += measure_training(platform)
    return rows
