"""Tasks for kernels through a real Envoy."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest
from dlmesh.inference.v1 import kernels_pb2, kernels_pb2_grpc
from gateway_room import Platform, assert_error, grpc_basic
from inference_calls import ALICE, refused


def test_kernel_streams_pass_both_ways(platform: Platform, channel: grpc.Channel) -> None:
    stub = kernels_pb2_grpc.KernelStreamServiceStub(channel)
    turns = [threading.Event() for _ in range(3)]

    def tasks() -> Iterator[kernels_pb2.StreamKernelTasksRequest]:
        for number, turn in enumerate(turns):
            assert turn.wait(60)
            yield kernels_pb2.StreamKernelTasksRequest(name="m", id=str(number))

    answers = stub.StreamKernelTasks(tasks(), metadata=grpc_basic(*ALICE), timeout=60)
    for number, turn in enumerate(turns):
        turn.set()
        answer = next(answers)
        assert (answer.id, answer.output) == (str(number), "alice")
    assert list(answers) == []
    code, _ = refused(lambda: list(stub.StreamKernelTasks(iter([]), timeout=10)))
    assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("content_type", ["application/json", "image/jpeg", "text/plain; charset=x", "a/b", None])
def test_kernels_are_invoked_with_any_body(platform: Platform, content_type: str | None) -> None:
    client, url = platform.client(), platform.url("/dlim/v1/inference/m")
    headers = {"content-type": content_type} if content_type else {}
    answer = client.post(url, data=b"\x00{" * 100, headers=headers)
    assert answer.json() == ["m", content_type or "", 200, "Admin"]


def test_bodies_for_kernels_have_a_limit(platform: Platform) -> None:
    client, url = platform.client(), platform.url("/dlim/v1/inference/m")
    fits = b"x" * (16 * 1024 * 1024)
    assert client.post(url, data=fits).json()[2] == len(fits)
    assert "at most 16777216 bytes" in assert_error(client.post(url, data=fits + b"x"), 413, 8)["message"]
    token = platform.client().get(platform.url("/platform/rest/conductor/v1/auth/logon")).cookies["platform.rest.token"]
    for headers in ({"authorization": f"Bearer {token}"}, {"x-auth-token": token}):
        assert platform.client(None).post(url, data=b"x", headers=headers).json()[2] == 1
    assert_error(platform.client(None).post(url, data=b"x"), 401, 16)
