"""Online inference through the gateway, straight to Triton, and by FastAPI, side by side."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from dlmesh_platform.endpoints import free_port
from dlmesh_platform.launch import RunningPlatform
from inference_load import Example, Load, grpc_load, post_request, rest_load, tensor_request
from report import Row, announce

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench"
FASTAPI = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")
# Slices are short and alternate, so that what a machine does meanwhile falls on all alike.
SLICE_SECONDS, WARMUP_SECONDS, PAIRS = 2.0, 1.0, 12
FEW, MANY = 16, 64
LEAST_OF_STRAIGHT, LEAST_OF_FASTAPI = 0.9, 3.0
Measure = Callable[[float], Load]


def measure_online(platform: RunningPlatform, pictures: str, texts: str) -> list[Row]:
    """`pictures` and `texts` are inference models that are READY: a convolutional net and a transformer.

    tritonclient through the gateway and straight to Triton; a plain client against FastAPI.
    """
    triton = json.loads((platform.home / "inference" / "triton.json").read_text())
    gateway = platform.url.removeprefix("http://")
    password = (platform.home / "admin_password").read_text().strip()
    credentials = {"authorization": f"Basic {b64encode(f'Admin:{password}'.encode()).decode()}"}
    picture = example(platform.home, pictures, make_picture())
    rows = []
    for connections in (FEW, MANY):

        def over_grpc(address: str, headers: Mapping[str, str] | None, number: int = connections) -> Measure:
            return lambda seconds: grpc_load(address, picture, headers, number, seconds)

        pairs = _in_turns(
            f"online, {connections} connections",
            {"gateway": over_grpc(gateway, credentials), "straight": over_grpc(triton["grpc"], None)},
        )
        rows.append(_straight_row(connections, pairs))
    text = example(platform.home, texts, b"Ann beats Bob!")
    for asked, what in ((picture, "the net of pictures"), (text, "the transformer")):
        rows += _against_fastapi(platform, asked, what, gateway, credentials)
    return rows


def example(home: Path, model: str, sample: bytes) -> Example:
    """What the model's own code makes of a sample."""
    from dlmesh_sdk import served

    loaded = served.load(bundle_of(home, model))
    encoded = loaded.encode([loaded.item(sample)])
    (tensor,) = served.describe(loaded.serving).inputs
    return Example(model, tensor.name, tensor.datatype, encoded.inputs[tensor.name])


def bundle_of(home: Path, model: str) -> Path:
    """Program and weights of its first version."""
    return home / "inference" / "repository" / model / "1" / "bundle"


def make_picture() -> bytes:
    """A PNG of 8 x 8 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _against_fastapi(
    platform: RunningPlatform, asked: Example, what: str, gateway: str, credentials: Mapping[str, str]
) -> Iterator[Row]:
    request = tensor_request(asked, gateway, credentials)
    bundle = bundle_of(platform.home, asked.model)
    with _fastapi(bundle, 1) as one, _fastapi(bundle, 2) as two:
        plain = post_request("/predict", one, asked.values.tobytes(), {})
        _same_answers(platform.url, f"http://{one}/predict", asked, credentials)
        loads = _in_turns(
            f"{what} against FastAPI, {MANY} connections",
            {
                "gateway": lambda seconds: rest_load(gateway, request, MANY, seconds),
                "one": lambda seconds: rest_load(one, plain, MANY, seconds),
                "two": lambda seconds: rest_load(two, plain, MANY, seconds),
            },
        )
    yield from _fastapi_rows(what, loads)


def _in_turns(what: str, ways: Mapping[str, Measure]) -> dict[str, list[Load]]:
    """Each way measured PAIRS times in slices; the order turns round with each round."""
    announce(f"{what}: {PAIRS} rounds of {len(ways)} slices")
    for measure in ways.values():
        measure(WARMUP_SECONDS)
    loads: dict[str, list[Load]] = {name: [] for name in ways}
    for turn in range(PAIRS):
        for name in ways if turn % 2 else reversed(ways):
            loads[name].append(ways[name](SLICE_SECONDS))
    return loads


def ratios(mine: Sequence[float], other: Sequence[float]) -> tuple[float, str]:
    """The median of the ratios of pairs, and how it is printed."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(mine, other, strict=True)], n=4)
    return middle, f"{middle:.2f} (quartiles {low:.2f}, {high:.2f} of {len(mine)} turns)"


def _median(loads: Sequence[Load], attribute: str) -> float:
    return statistics.median(getattr(load, attribute) for load in loads)


def _rates(loads: Sequence[Load]) -> list[float]:
    return [load.rate for load in loads]


def _straight_row(connections: int, loads: Mapping[str, list[Load]]) -> Row:
    ratio, shown = ratios(_rates(loads["gateway"]), _rates(loads["straight"]))
    return Row(
        f"online, one tensor a request, tritonclient over gRPC, {connections} connections",
        f"{_median(loads['gateway'], 'rate'):,.0f} answers/s through the gateway",
        f"{_median(loads['straight'], 'rate'):,.0f} straight to Triton",
        shown,
        f"at least {LEAST_OF_STRAIGHT}",
        ratio >= LEAST_OF_STRAIGHT,
    )


def _fastapi_rows(what: str, loads: Mapping[str, list[Load]]) -> Iterator[Row]:
    ours, ours_p99 = _median(loads["gateway"], "rate"), _median(loads["gateway"], "p99_ms")
    for name, said, least in (("one", "as it comes", LEAST_OF_FASTAPI), ("two", "a process a core", None)):
        ratio, shown = ratios(_rates(loads["gateway"]), _rates(loads[name]))
        yield Row(
            f"online over REST through the gateway, {MANY} connections, {what}, against FastAPI with torch {said}",
            f"{ours:,.0f} answers/s",
            f"{_median(loads[name], 'rate'):,.0f} answers/s",
            shown,
            "" if least is None else f"at least {least}",
            None if least is None else ratio >= least,
        )
        theirs = _median(loads[name], "p99_ms")
        yield Row(
            f"99% of its answers within, against FastAPI {said}",
            f"{ours_p99:.0f} ms",
            f"{theirs:.0f} ms",
            f"{ours_p99 / theirs:.2f}",
            "" if least is None else "below 1",
            None if least is None else ours_p99 < theirs,
        )


@contextmanager
def _fastapi(bundle: Path, workers: int) -> Iterator[str]:
    """The server of fastapi_server.py on one port of loopback; host:port once it answers."""
    address = f"127.0.0.1:{free_port(set())}"
    words = [str(_fastapi_python()), str(HERE / "fastapi_server.py"), str(bundle), address.split(":")[1], str(workers)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DLMESH"))}
    process = subprocess.Popen(words, env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"FastAPI did not start: {process.returncode}")
            try:
                requests.get(f"http://{address}/openapi.json", timeout=10).raise_for_status()
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _fastapi_python() -> Path:
    """An environment of its own, with the platform's torch: the same forward pass is compared."""
    python = PEERS / "fastapi" / "bin" / "python"
    installed = PEERS / "fastapi-installed"
    if not installed.exists() or installed.read_text() != str(FASTAPI):
        announce("installing FastAPI for comparison")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS / "fastapi")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *FASTAPI], check=True)
        packages = next((PEERS / "fastapi" / "lib").glob("python3.*/site-packages"))
        (packages / "torch_of_the_platform.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
        installed.write_text(str(FASTAPI))
    return python


def _same_answers(url: str, peer: str, asked: Example, headers: Mapping[str, str]) -> None:
    """RuntimeError unless both servers say the same of one tensor."""
    tensor = {"name": asked.tensor, "shape": list(asked.values.shape), "datatype": asked.datatype}
    body = {"inputs": [{**tensor, "data": asked.values.ravel().tolist()}]}
    ours = requests.post(f"{url}/v2/models/{asked.model}/infer", json=body, headers=headers, timeout=60)
    outputs = {each["name"]: each["data"] for each in ours.json()["outputs"]}
    theirs = requests.post(peer, data=asked.values.tobytes(), timeout=60).json()["outputs"]
    if not np.allclose(outputs["OUTPUT__0"], theirs, atol=1e-5):
        raise RuntimeError(f"{outputs['OUTPUT__0']} is not {theirs}")
