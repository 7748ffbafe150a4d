"""kill -9 of Triton, of models' processes, kernels, workers and the service itself while all of them are asked.

No accepted sample of a prediction is lost or doubled, and whatever is answered with success is right.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc as triton_grpc
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import ranks_of
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.platform, pytest.mark.slow]

MODEL, KERNEL = "struck", "echo"
COPIES = 16
PATIENCE_SECONDS = 240.0
# Each victim so often: a worker that is killed more often than its job may be started again ends the job.
VICTIMS = (
    "triton",
    "model",
    "worker",
    "kernel",
    "inference",
    "triton",
    "kernel",
    "worker",
    "model",
    "kernel",
    "triton",
)
PAUSE_SECONDS = (0.3, 2.0)
# What the gateway, Triton and the service say of what they cannot answer now.
REFUSALS = {409, 429, 500, 502, 503, 504}
ECHO = """\
import redhareapiversion
from redhareapi import Kernel


class Echo(Kernel):
    def on_kernel_start(self, kernel_context):
        pass

    def on_task_invoke(self, task_context):
        while task_context is not None:
            task_context.set_output_data("echo " + task_context.get_input_data())
            task_context = task_context.next()

    def on_kernel_shutdown(self):
        pass


if __name__ == "__main__":
    Echo().run()
"""


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def patiently(call: Callable[[], Any]) -> Any:
    """Asked again while the service is away."""

    def attempt() -> Any:
        try:
            return (call(),)
        except Exception:
            return None

    return until(attempt)[0]


@pytest.fixture(scope="module")
def client(platform: RunningPlatform) -> Iterator[Client]:
    made = platform.client()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(trained: MainJob, client: Client) -> Iterator[None]:
    client.post("/inferences", {"modelName": trained.prefix, "trainName": "first", "inferenceModelName": MODEL})
    until(lambda: client.get(f"/servedmodels/{MODEL}")["state"] == "READY")
    yield
    client.delete(f"/models/{MODEL}")


@pytest.fixture(scope="module")
def kernel(platform: RunningPlatform, client: Client) -> Iterator[None]:
    folder = platform.home / "data" / KERNEL
    folder.mkdir()
    (folder / "kernel.py").write_text(ECHO)
    client.post(f"/edimodels/{KERNEL}", {"modelPath": KERNEL})
    client.put(f"/edimodels/{KERNEL}/operation/start", {})
    until(lambda: client.get(f"/edimodels/{KERNEL}")["state"] == "STARTED")
    yield
    client.put(f"/edimodels/{KERNEL}/operation/stop", {})
    until(lambda: client.get(f"/edimodels/{KERNEL}")["state"] == "STOPPED")
    client.delete(f"/edimodels/{KERNEL}")


def predict(platform: RunningPlatform, client: Client, name: str, folder: str) -> None:
    fields = {"modelname": MODEL, "predictname": name, "threshold": "0", "inputpath": folder}
    session = requests.Session()
    session.trust_env = False
    session.auth = ("Admin", (platform.home / "admin_password").read_text().strip())
    answer = session.post(
        f"{platform.url}/platform/rest/deeplearning/v1/inferences/startpredict",
        files={key: (None, value) for key, value in fields.items()},
        timeout=PATIENCE_SECONDS,
    )
    assert answer.status_code == 200, answer.text


def results_of(client: Client, name: str) -> dict[str, list[dict[str, Any]]]:
    """Labels and probabilities by sample; a sample that is there twice is refused."""
    found: dict[str, list[dict[str, Any]]] = {}
    total, start = 1, 0
    while start < total:
        page = patiently(lambda start=start: client.get(f"/inferences/{name}/predicts?start={start}&length=5000"))
        total = page["total"]
        for row in page["classificationResults"]:
            assert row["sampleId"] not in found
            found[row["sampleId"]] = row["results"]
        start += len(page["classificationResults"])
    return found


def victims_of(platform: RunningPlatform, kind: str, run: dict[str, Any]) -> Sequence[psutil.Process]:
    service = platform.pids().get("inference")
    if kind == "worker":
        return ranks_of(platform, run)
    if service is None:
        return ()
    if kind == "inference":
        return [psutil.Process(service)]
    found = []
    for process in psutil.Process(service).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            what = "model" if "python_backend_stub" in line else "triton" if "tritonserver" in line else "kernel"
            if what == kind:
                found.append(process)
    return found


class Callers:
    """Threads that ask all the time and look at what is answered."""

    def __init__(self, platform: RunningPlatform, expected: dict[str, list[dict[str, Any]]], pictures: Path) -> None:
        self.platform, self.expected, self.pictures = platform, expected, pictures
        self.password = (platform.home / "admin_password").read_text().strip()
        self.over = threading.Event()
        self.counts: Counter[str] = Counter()
        self.lies: list[str] = []
        jobs = [self._ask_model] * 2 + [self._ask_kernel] * 2
        self._threads = [threading.Thread(target=job, args=(number,)) for number, job in enumerate(jobs)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _ask_model(self, number: int) -> None:
        chance = random.Random(number)
        headers = {"authorization": requests.auth._basic_auth_str("Admin", self.password)}
        asked = triton_grpc.InferenceServerClient(self.platform.url.removeprefix("http://"))
        names = sorted(self.expected)
        while not self.over.is_set():
            name = chance.choice(names)
            item = triton_grpc.InferInput("ITEM", [1, 1], "BYTES")
            item.set_data_from_numpy(np.array([[(self.pictures / name).read_bytes()]], np.object_))
            try:
                answer = asked.infer(MODEL, [item], headers=headers, client_timeout=60)
            except InferenceServerException:
                self.counts["model refused"] += 1
                time.sleep(0.05)
                continue
            best = json.loads(answer.as_numpy("RESULT").item())["scores"][0]
            right = self.expected[name][0]
            if best["label"] != right["label"] or abs(best["prob"] - right["prob"]) > 1e-4:
                self.lies.append(f"{name}: {best}, should be {right}")
            self.counts["model"] += 1
        asked.close()

    def _ask_kernel(self, number: int) -> None:
        url = f"{self.platform.url}/dlim/v1/inference/{KERNEL}"
        with requests.Session() as session:
            session.trust_env = False
            session.auth = ("Admin", self.password)
            count = 0
            while not self.over.is_set():
                count += 1
                text = f"{number}/{count}"
                try:
                    answer = session.post(url, data=text, timeout=PATIENCE_SECONDS)
                except requests.ConnectionError:
                    self.counts["kernel away"] += 1
                    continue
                if answer.status_code == 200:
                    self.counts["kernel"] += 1
                    if answer.text != f"echo {text}":
                        self.lies.append(f"{text}: {answer.text}")
                elif answer.status_code not in REFUSALS:
                    self.lies.append(f"{text}: {answer.status_code} {answer.text}")
                else:
                    self.counts["kernel refused"] += 1
                    time.sleep(0.05)


@pytest.mark.usefixtures("model", "kernel")
def test_nothing_accepted_is_lost_and_no_success_lies(platform: RunningPlatform, client: Client) -> None:
    pictures = platform.home / "data" / "calm"
    many = platform.home / "data" / "struck"
    pictures.mkdir()
    many.mkdir()
    for source in sorted((platform.home / "data" / "digits").rglob("*.png")):
        name = f"{source.parent.name}-{source.name}"
        os.link(source, pictures / name)
        for copy in range(COPIES):
            os.link(source, many / f"{copy:02d}-{name}")
    predict(platform, client, "calm", "calm")
    until(lambda: client.get("/inferences/calm")["status"] == "FINISHED")
    expected = results_of(client, "calm")
    assert len(expected) == len(list(pictures.iterdir()))

    chance = random.Random(7)
    killed: Counter[str] = Counter()
    predict(platform, client, "struck", "struck")

    def detail() -> dict[str, Any]:
        return dict(patiently(lambda: client.get("/inferences/struck")))

    until(lambda: int(detail()["progress"].partition("/")[0] or 0) > 0)
    with Callers(platform, expected, pictures) as callers:
        for kind in VICTIMS:
            run = detail()
            if run["status"] not in ("SUBMITTED", "RUNNING"):
                break
            with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
                victims = victims_of(platform, kind, run)
                os.kill(chance.choice(victims).pid, signal.SIGKILL)
                killed[kind] += 1
            time.sleep(chance.uniform(*PAUSE_SECONDS))
        run = until(lambda: (found := detail())["status"] not in ("SUBMITTED", "RUNNING") and found)
        # All of it is there again.
        before = callers.counts.copy()
        until(lambda: all(callers.counts[who] > before[who] + 3 for who in ("model", "kernel")) or callers.lies)

    assert callers.lies == []
    assert len(killed) >= 4, killed
    assert run["status"] == "FINISHED", run
    found = results_of(client, "struck")
    assert len(found) == COPIES * len(expected)
    wrong = [
        name
        for name, scores in found.items()
        if scores[0]["label"] != expected[name[3:]][0]["label"]
        or abs(scores[0]["prob"] - expected[name[3:]][0]["prob"]) > 1e-4
    ]
    assert wrong == []
