"""What training by the platform costs, measured against a plain DeepSpeed program and against itself."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import TEMPLATE
from photographs import write_class_folders
from report import Row, announce
from timed_runs import Notes, make_template, rates_in_turns, read_notes, steps_row

PLAIN_PROGRAM = str(Path(__file__).with_name("bare_deepspeed.py"))
IMAGES, SIDE, BATCH_SIZE = 2000, 64, 32
# Steps/s are measured while both run; neither may come to its end.
ENDLESS_EPOCHS = 10_000
TURNS = 24
LONG_EPOCHS = 16
STARTS = 3
# Looked at seldom: on a small machine each look takes time from the ranks.
PATIENCE: dict[str, float] = {"seconds": 600.0, "interval_seconds": 2.0}
MODEL = "timed"


def measure_training() -> list[Row]:
    """Trainings of the bundled image template on generated photographs, two ranks."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        write_class_folders(home / "data" / "photographs", IMAGES, SIDE, SIDE)
        with launch(home) as platform:
            client = platform.client()
            _make_dataset(client)
            make_template(platform, MODEL, TEMPLATE)
            return [*_measure_steps(platform, client), *_measure_long_run(platform, client), _measure_resume(client)]


def _measure_steps(platform: RunningPlatform, client: Client) -> Iterator[Row]:
    with _model(client, ENDLESS_EPOCHS):
        _start(client, "steps")
        ours = Path(_detail(client, "steps")["path"])
        client.until(lambda: (ours / "timed.jsonl").exists() and bool(_first_steps(ours)), **PATIENCE)
        pairs = rates_in_turns(platform, ours, PLAIN_PROGRAM, turns=TURNS)
        client.put(f"/models/{MODEL}/trainings/steps/stop")
        client.until(lambda: _detail(client, "steps")["status"] == "STOPPED", **PATIENCE)
        client.delete(f"/models/{MODEL}/trainings/steps")
    yield steps_row("training steps/s, 2 ranks, 64 x 64", pairs, "plain DeepSpeed program")


def _measure_long_run(platform: RunningPlatform, client: Client) -> Iterator[Row]:
    announce("waiting for data, and checkpoints")
    with _model(client, LONG_EPOCHS):
        notes = _train(client, "long")
    waiting = notes.waiting_share
    yield Row("waiting for data, of step time", f"{waiting:.2%}", "", "", "at most 5%", waiting <= 0.05)
    share = notes.checkpoint_share
    seconds = notes.steady[-1] - notes.steady[0]
    yield Row(
        "checkpoints every 10 s, of step time",
        f"{share:.2%} ({len(notes.checkpoints)} in {seconds:.0f} s)",
        "steps while none is written",
        "",
        "at most 2%",
        share <= 0.02 and len(notes.checkpoints) >= 3,
    )


def _measure_resume(client: Client) -> Row:
    """From kill -9 of a rank to the next step that ends, against submission to the first step of a fresh training."""
    cold, resumed = [], []
    with _model(client, LONG_EPOCHS):
        for number in range(STARTS):
            announce(f"kill -9 of a rank: {number + 1} of {STARTS}")
            submitted = time.time()
            name = f"killed{number}"
            _start(client, name)
            folder = Path(_detail(client, name)["path"])
            checkpoint = folder / "steps"
            client.until(lambda checkpoint=checkpoint: any(checkpoint.glob("step-*")), **PATIENCE)
            cold.append(_first_steps(folder)[0] - submitted)
            (attempt,) = read_notes(folder)
            killed = time.time()
            os.kill(attempt.begin["pid"], signal.SIGKILL)
            client.until(
                lambda folder=folder: len(found := read_notes(folder)) > 1 and bool(found[-1].steps), **PATIENCE
            )
            resumed.append(read_notes(folder)[-1].steps[0] - killed)
            client.put(f"/models/{MODEL}/trainings/{name}/stop")
            client.until(lambda name=name: _detail(client, name)["status"] == "STOPPED", **PATIENCE)
    from_kill, from_submission = statistics.median(resumed), statistics.median(cold)
    return Row(
        "kill -9 of a rank to the next step, from a checkpoint",
        f"{from_kill:.2f} s",
        f"{from_submission:.2f} s submission to first step",
        f"{from_kill / from_submission:.2f}",
        "at most 2",
        from_kill / from_submission <= 2,
    )


def _first_steps(folder: Path) -> list[float]:
    """When the first step of each attempt ended."""
    return [attempt.steps[0] for attempt in read_notes(folder) if attempt.steps]


def _make_dataset(client: Client) -> None:
    images = {
        "isusingtext": False,
        "trainimagepath": "photographs",
        "imagetype": "Color",
        "height": SIDE,
        "width": SIDE,
        "resizetransformation": "squash",
        "valpercentage": 5,
        "testpercentage": 5,
    }
    kind = {"datasourcetype": "IMAGEFORCLASSIFICATION", "dbbackend": "LMDB", "sigid": "local"}
    client.post("/datasets", {"name": "photographs", **kind, "imagedetail": images})
    client.wait(lambda: client.get("/datasets/photographs"), **PATIENCE)


@contextmanager
def _model(client: Client, epochs: int) -> Iterator[None]:
    body = {"name": MODEL, "templatename": MODEL, "dataset": "photographs", "sig": "local", "accelerator": "Native"}
    rates = {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": epochs}
    client.post("/models", {**body, "type": "Training", "batchsize": BATCH_SIZE, "hyperparameter": rates})
    try:
        yield
    finally:
        client.delete(f"/models/{MODEL}")


def _start(client: Client, name: str) -> None:
    body = {"trainName": name, "dlFramework": "PyTorch", "clusterSize": 2, "testInterval": 100_000}
    client.post(f"/models/{MODEL}/trainings", body)


def _detail(client: Client, name: str) -> dict[str, Any]:
    detail: dict[str, Any] = client.get(f"/models/{MODEL}/trainings/{name}")["trainingParameters"]
    return detail


def _train(client: Client, name: str) -> Notes:
    _start(client, name)
    detail = client.wait(lambda: _detail(client, name), **PATIENCE)
    (notes,) = read_notes(Path(detail["path"]))
    return notes
