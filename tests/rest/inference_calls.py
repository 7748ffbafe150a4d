"""A platform that takes inference, and requests to it by REST and gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from gateway_room import ADMIN, Platform, grpc_basic, running_platform, wait_until
from inference_room import InferencePeers, Triton, running_triton
from tritonclient.grpc import service_pb2

USERS = "/platform/rest/dlmesh/v1/users"
ALICE = ("alice", "password of alice")
MAX_BYTES = 20 * 1024 * 1024
MAX_REQUESTS = 12
METHOD = "/inference.GRPCInferenceService/"
VALUES = [1.5, -2.0, 3.25]


@contextlib.contextmanager
def inference_platform(home: Path) -> Iterator[Platform]:
    """Alice is a user of it."""
    limits = {
        "DLMESH_MAX_INFERENCE_BYTES": str(MAX_BYTES),
        "DLMESH_MAX_INFERENCE_REQUESTS": str(MAX_REQUESTS),
        "DLMESH_ENVOY_WORKERS": "1",
    }
    with running_platform(home, InferencePeers, environment=limits) as running:
        alice = {"name": ALICE[0], "password": ALICE[1], "role": "user"}
        assert running.client().post(running.url(USERS), json=alice).status_code == 201
        yield running


@contextlib.contextmanager
def triton_behind(platform: Platform) -> Iterator[Triton]:
    """The gateway has found it."""
    with running_triton(platform.home) as server:
        client = platform.client()
        wait_until(lambda: client.get(platform.url("/v2/health/ready")).status_code == 200, 30)
        yield server


def body_of(values: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, len(values)], "data": values}]}


def request_of(name: str, version: str = "", values: list[float] | None = None) -> Any:
    values = values or VALUES
    request = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    request.inputs.add(name="INPUT__0", datatype="FP32", shape=[1, len(values)])
    request.raw_input_contents.append(np.array(values, np.float32).tobytes())
    return request


def call_infer(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        METHOD + "ModelInfer",
        request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def infer(channel: grpc.Channel, request: Any, user: tuple[str, str] = ADMIN, seconds: float = 60) -> Any:
    return call_infer(channel)(request, metadata=grpc_basic(*user), timeout=seconds)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code(), str(refusal.value.details())
