"""What Envoy holds of requests to a Triton that hangs is bounded, and it serves on."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
from gateway_room import ADMIN, Platform, grpc_basic, running_platform, serves, wait_until
from inference_room import InferencePeers
from tritonclient.grpc import service_pb2

MEMORY_BYTES = 256 * 1024**2
BODY_BYTES = 32 * 1024**2
REQUESTS = 60


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    limits = {"DLMESH_ENVOY_MEMORY_BYTES": str(MEMORY_BYTES), "DLMESH_ENVOY_WORKERS": "1"}
    with running_platform(tmp_path, InferencePeers, environment=limits) as running:
        yield running


@contextlib.contextmanager
def hanging_triton(platform: Platform) -> Iterator[None]:
    """It takes connections and nothing more."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (platform.home / "inference").mkdir()
        (platform.home / "inference" / "triton.json").write_text(
            json.dumps({"http": f"http://{address}", "grpc": address})
        )
        for cluster in ("triton_http", "triton_grpc"):
            wait_until(lambda cluster=cluster: platform.counter(f"cluster.{cluster}.membership_total") == 1, 60)
        yield
    (platform.home / "inference" / "triton.json").unlink()


def post(platform: Platform) -> bool:
    """Whether it was refused."""
    try:
        answer = platform.client().post(platform.url("/v2/models/echo/infer"), data=bytes(BODY_BYTES), timeout=300)
    except requests.ConnectionError:
        return True
    return answer.status_code in (500, 503)


def infer(platform: Platform) -> bool:
    """The same over a connection of its own."""
    request = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(BODY_BYTES)])
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}", options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            call(request.SerializeToString(), metadata=grpc_basic(*ADMIN), timeout=300)
        except grpc.RpcError as error:
            return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("send", [post, infer])
def test_memory_is_bounded_and_envoy_serves_on(platform: Platform, send: Callable[[Platform], bool]) -> None:
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, platform.envoy.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    client = platform.client()
    # Known from here on.
    assert client.get(platform.url("/v2/models/nobody")).status_code == 404
    try:
        with ThreadPoolExecutor(REQUESTS) as pool, hanging_triton(platform):
            calls = [pool.submit(send, platform) for _ in range(REQUESTS)]
            wait_until(lambda: any(call.done() for call in calls), 120)
        assert all(call.result() for call in calls)
        # Meanwhile it may close connections, kept ones too.
        wait_until(lambda: serves(platform), 120)
    finally:
        done.set()
        watching.join()
    # Less than half of what was sent.
    assert most < REQUESTS * BODY_BYTES / 2
