"""The Open Inference Protocol on a whole platform: a trained model, asked by clients that know only the protocol."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
from testkit.platform import held_out
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.slow

MODEL = "online"
# How long a rollback may take.
LIFETIME_SECONDS = 1.0
PATIENCE_SECONDS = 240


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def model(platform: RunningPlatform, trained: MainJob) -> Iterator[str]:
    """Versions 1 and 2 of an inference model; all requests go to version 1."""
    client = platform.client()
    client.post("/inferences", {"modelName": trained.prefix, "trainName": "first", "inferenceModelName": MODEL})

    def states() -> list[str]:
        versions = client.get(f"/servedmodels/{MODEL}")["versions"]
        found = [version["state"] for version in versions]
        assert "FAILED" not in found, versions
        return found

    until(lambda: states() == ["READY"])
    client.post(f"/servedmodels/{MODEL}/versions", {"trainName": "first"})
    until(lambda: states() == ["READY", "READY"])
    yield MODEL
    client.close()


class Online:
    """Both faces of the protocol, as one user."""

    def __init__(self, platform: RunningPlatform, user: str, password: str) -> None:
        self.url = platform.url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.auth = (user, password)
        self.headers = {"authorization": requests.auth._basic_auth_str(user, password)}
        self.grpc = triton_grpc.InferenceServerClient(platform.url.removeprefix("http://"))

    def close(self) -> None:
        self.session.close()
        self.grpc.close()

    def get(self, path: str) -> requests.Response:
        return self.session.get(self.url + path, timeout=PATIENCE_SECONDS)

    def post(self, tensor: np.ndarray[Any, Any], version: str = "") -> requests.Response:
        body = {"name": "INPUT__0", "datatype": "FP32", "shape": list(tensor.shape), "data": tensor.ravel().tolist()}
        path = f"/v2/models/{MODEL}{version and '/versions/' + version}/infer"
        return self.session.post(self.url + path, json={"inputs": [body]}, timeout=PATIENCE_SECONDS)

    def infer(self, tensor: np.ndarray[Any, Any], version: str = "", model: str = MODEL) -> Any:
        sent = triton_grpc.InferInput("INPUT__0", list(tensor.shape), "FP32")
        sent.set_data_from_numpy(tensor)
        return self.grpc.infer(model, [sent], model_version=version, headers=self.headers)

    def ask(self, picture: Path) -> dict[str, Any]:
        """What the model says of an encoded picture."""
        sent = triton_grpc.InferInput("ITEM", [1, 1], "BYTES")
        sent.set_data_from_numpy(np.array([[picture.read_bytes()]], np.object_))
        return dict(json.loads(self.grpc.infer(MODEL, [sent], headers=self.headers).as_numpy("RESULT").ravel()[0]))


@pytest.fixture
def online(platform: RunningPlatform, model: str) -> Iterator[Online]:
    client = Online(platform, "Admin", (platform.home / "admin_password").read_text().strip())
    yield client
    client.close()


@pytest.fixture
def tensor(online: Online, model: str) -> np.ndarray[Any, Any]:
    shape = next(
        entry["shape"] for entry in online.get(f"/v2/models/{model}").json()["inputs"] if entry["name"] == "INPUT__0"
    )
    return np.random.default_rng(5).random([1, *shape[1:]], np.float32)


def test_clients_of_the_protocol_infer(
    platform: RunningPlatform, online: Online, model: str, tensor: np.ndarray[Any, Any]
) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{model}/ready"):
        assert online.get(path).status_code == 200
    assert online.grpc.is_server_ready(online.headers)
    assert list(online.grpc.get_model_metadata(model, headers=online.headers).versions) == ["1", "2"]
    answer = online.infer(tensor)
    probabilities = answer.as_numpy("OUTPUT__0")
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    outputs = {output["name"]: output for output in online.post(tensor).json()["outputs"]}
    np.testing.assert_allclose(outputs["OUTPUT__0"]["data"], probabilities.ravel(), rtol=1e-5)
    said = [online.ask(picture)["scores"][0]["label"] for picture in held_out(platform)]
    true = [picture.name[0] for picture in held_out(platform)]
    assert sum(one == other for one, other in zip(said, true, strict=True)) >= 7


def test_who_may_infer(
    platform: RunningPlatform, online: Online, tensor: np.ndarray[Any, Any], new_user: Callable[[str], Client]
) -> None:
    assert requests.get(f"{platform.url}/v2/models/{MODEL}", timeout=60).status_code == 401
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        online.grpc.is_model_ready(MODEL)
    stranger = new_user("stranger")
    other = Online(platform, *stranger._session.auth)  # type: ignore[misc]
    try:
        assert other.post(tensor).status_code == 403
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            other.infer(tensor)
    finally:
        other.close()
    assert online.get("/v2/models/nobody").status_code == 404
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        online.infer(tensor, model="nobody")


def test_versions_canary_and_rollback(online: Online, admin: Client, tensor: np.ndarray[Any, Any]) -> None:
    assert [online.infer(tensor, version).get_response().model_version for version in ("1", "2")] == ["1", "2"]
    assert online.post(tensor, "2").json()["model_version"] == "2"
    assert online.post(tensor, "7").status_code == 404

    def set_shares(**shares: int) -> None:
        parts = [{"version": int(name[1:]), "percentage": share} for name, share in shares.items()]
        admin.put(f"/servedmodels/{MODEL}/traffic", {"shares": parts})
        time.sleep(LIFETIME_SECONDS * 1.05)

    set_shares(v1=90, v2=10)
    seen = Counter(online.infer(tensor).get_response().model_version for _ in range(250))
    seen += Counter(online.post(tensor).json()["model_version"] for _ in range(150))
    # Of 400 draws with a chance of 0.1, fewer than 12 or more than 78 come once in ten million.
    assert 12 <= seen["2"] <= 78
    assert seen["1"] + seen["2"] == 400
    set_shares(v1=100)
    assert {online.infer(tensor).get_response().model_version for _ in range(60)} == {"1"}


def test_triton_killed_is_a_clean_503_and_comes_back(
    platform: RunningPlatform, online: Online, tensor: np.ndarray[Any, Any]
) -> None:
    answers: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = online.post(tensor)
            answers.append((answer.status_code, answer.headers.get("retry-after", "")))

    assert online.post(tensor).status_code == 200
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        (server,) = [
            child for child in psutil.Process(platform.pids()["inference"]).children() if child.name() == "tritonserver"
        ]
        server.kill()
        server.wait(60)
        before = len(answers)
        until(lambda: len(answers) > before + 20 and answers[-1][0] == 200)
    finally:
        done.set()
        asking.join()
    assert {status for status, _ in answers} <= {200, 503}
    assert all(retry_after for status, retry_after in answers if status == 503)
    assert online.infer(tensor).get_response().model_version == "1"
