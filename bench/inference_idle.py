"""Many models of which few are in memory: what the idle ones cost, and how long one takes to come back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import psutil
import requests
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from inference_online import example
from report import Row, announce

# What Triton may have in memory; the platform is started so.
LOADED = 10
MODELS, AT_A_TIME, RETURNS = 200, 10, 5
MOST_MB_OF_AN_IDLE_MODEL = 1.0
PATIENCE: dict[str, float] = {"seconds": 1200.0, "interval_seconds": 1.0}


def measure_idle(platform: RunningPlatform, training: tuple[str, str], sample: bytes) -> Iterator[Row]:
    """`training` is model and training; each of the models is exported from it, loaded, asked once, and goes again."""
    client = platform.client()
    names = [f"many-{number:03d}" for number in range(MODELS)]
    _make(client, names[:LOADED], training)
    few_mb = _memory_mb(platform)
    announce(f"{MODELS} models, {LOADED} in memory")
    for start in range(LOADED, MODELS, AT_A_TIME):
        _make(client, names[start : start + AT_A_TIME], training)
    client.until(lambda: sum(bool(each.get("isLoaded")) for each in client.get("/servedmodels")) <= LOADED, **PATIENCE)
    many_mb = _memory_mb(platform)
    each_mb = (many_mb - few_mb) / (MODELS - LOADED)
    yield Row(
        f"memory (PSS) of Triton and its service, {MODELS} models of which {LOADED} are loaded, after {MODELS} loads",
        f"{many_mb:,.0f} MB",
        f"{few_mb:,.0f} MB with {LOADED} models, all loaded",
        f"{each_mb:+.2f} MB an idle model",
        f"at most {MOST_MB_OF_AN_IDLE_MODEL:g} MB",
        each_mb <= MOST_MB_OF_AN_IDLE_MODEL,
    )
    times = [_first_answer(platform, name, sample) for name in names[:RETURNS]]
    yield Row("the first answer of an idle model", f"{statistics.median(times):.1f} s", "", "", "", None)


def _make(client: Client, names: list[str], training: tuple[str, str]) -> None:
    """All READY: each has been in memory and has answered."""
    model, train = training
    for name in names:
        client.post("/inferences", {"modelName": model, "trainName": train, "inferenceModelName": name})

    def are_ready() -> bool:
        states = {each["name"]: each for each in client.get("/servedmodels") if each["name"] in names}
        for each in states.values():
            if each["state"] == "FAILED":
                raise RuntimeError(each["statusMessage"])
        return len(states) == len(names) and all(each["state"] == "READY" for each in states.values())

    client.until(are_ready, **PATIENCE)


def _memory_mb(platform: RunningPlatform) -> float:
    """Proportional set sizes of the inference service and all that it started."""
    # What has been told to go needs a moment.
    time.sleep(5)
    root = psutil.Process(platform.pids()["inference"])
    return sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)]) / 2**20


def _first_answer(platform: RunningPlatform, name: str, sample: bytes) -> float:
    asked = example(platform.home, name, sample)
    tensor = {"name": asked.tensor, "shape": list(asked.values.shape), "datatype": asked.datatype}
    body = {"inputs": [{**tensor, "data": asked.values.ravel().tolist()}]}
    password = (platform.home / "admin_password").read_text().strip()
    began = time.perf_counter()
    answer = requests.post(
        f"{platform.url}/v2/models/{name}/infer", json=body, auth=("Admin", password), timeout=PATIENCE["seconds"]
    )
    took = time.perf_counter() - began
    answer.raise_for_status()
    return took
