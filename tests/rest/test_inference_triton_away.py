"""Inference through a real Envoy to a Triton that is killed, moved, switched off, or hangs up."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from gateway_room import ADMIN, Platform, assert_error, grpc_basic, wait_until
from inference_calls import METHOD, VALUES, body_of, infer, inference_platform, refused, request_of, triton_behind
from inference_room import Triton

ENDED = "the process of the inference model ended, perhaps over this request; it is being loaded again"


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One of their own: they take its Triton away."""
    with inference_platform(tmp_path_factory.mktemp("away")) as running:
        yield running


@pytest.fixture(scope="module")
def triton(platform: Platform) -> Iterator[Triton]:
    with triton_behind(platform) as server:
        yield server


def test_the_process_of_a_model_is_killed(platform: Platform, triton: Triton, channel: grpc.Channel) -> None:
    client, url = platform.client(), platform.url("/v2/models/echo/versions/1/infer")
    assert client.post(url, json=body_of(VALUES)).status_code == 200
    for process in triton.model_processes():
        process.kill()
        # Triton collects it when it next needs it.
        wait_until(lambda process=process: not is_alive(process), 10)
    for _ in range(2):
        answer = client.post(url, json=body_of(VALUES))
        assert assert_error(answer, 503, 14)["error"] == ENDED
        assert answer.headers["retry-after"] == "1"
        code, message = refused(lambda: infer(channel, request_of("echo", "1")))
        assert (code, message) == (grpc.StatusCode.UNAVAILABLE, ENDED)
    triton.kill()
    triton.start()
    wait_until(lambda: client.post(url, json=body_of(VALUES)).status_code == 200, 60)


def test_triton_killed_moved_and_switched_off(platform: Platform, triton: Triton, channel: grpc.Channel) -> None:
    client, url = platform.client(), platform.url("/v2/models/echo/infer")
    assert client.post(url, json=body_of(VALUES)).status_code == 200
    triton.kill()
    with ThreadPoolExecutor(2) as pool:
        rest = pool.submit(client.post, url, json=body_of(VALUES))
        call = pool.submit(infer, channel, request_of("echo"))
        wait_until(lambda: platform.counter("cluster.triton_grpc.upstream_rq_retry") >= 1, 30)
        # On other ports: the gateway follows.
        triton.start()
        assert rest.result(60).status_code in (200, 503)
        error = call.exception(60)
        assert error is None or error.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: client.post(url, json=body_of(VALUES)).status_code == 200, 60)
    assert infer(channel, request_of("echo")).model_version == "1"

    (platform.home / "inference" / "triton.json").unlink()
    wait_until(lambda: client.get(platform.url("/v2/health/live")).status_code == 503, 60)
    answer = client.post(url, json=body_of(VALUES))
    assert "switched off" in assert_error(answer, 503, 14)["error"]
    assert answer.headers["retry-after"]
    # The other file may be read a moment later.
    live = channel.unary_unary(METHOD + "ServerLive")
    wait_until(lambda: live.future(b"", metadata=grpc_basic(*ADMIN)).exception(60) is not None, 60)
    code, message = refused(lambda: infer(channel, request_of("echo")))
    assert (code, "switched off" in message) == (grpc.StatusCode.UNAVAILABLE, True)


def test_what_triton_dies_over_is_not_sent_again(platform: Platform, triton: Triton) -> None:
    """One that hangs up on whatever arrives."""
    arrived: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        arrived.append(connection.recv(65536))

        serving = threading.Thread(target=serve)
        serving.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (platform.home / "inference" / "triton.json").write_text(json.dumps({"http": f"http://{address}", "grpc": ""}))
        client = platform.client()
        wait_until(lambda: client.get(platform.url("/v2/health/live")).status_code == 503 and bool(arrived), 60)
        arrived.clear()
        answer = client.post(platform.url("/v2/models/echo/infer"), json=body_of(VALUES))
        server.shutdown(socket.SHUT_RDWR)
        serving.join(60)
    assert "try again" in assert_error(answer, 503, 14)["error"]
    assert answer.headers["retry-after"]
    assert len(arrived) == 1
