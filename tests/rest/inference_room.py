"""A real Triton behind the gateway; who may infer with what, says a stand-in for the inference service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from dlmesh.inference.v1 import kernels_pb2, kernels_pb2_grpc, serving_pb2, serving_pb2_grpc
from gateway_room import Peers, wait_until
from google.api import httpbody_pb2
from inference_service.triton.installation import Ports, find_installation
from inference_service.triton.server import PORTS, SHARED_MEMORY, is_free, publish_addresses
from servicekit.errors import Code, ServiceError, forbidden, not_found
from servicekit.identity import current_identity
from servicekit.settings import ServiceSettings

LIFETIME_SECONDS = 1.0
CONFIG = """
backend: "python"
version_policy { all {} }
input [ { name: "INPUT__0", data_type: TYPE_FP32, dims: [ -1 ] } ]
output [ { name: "OUTPUT__0", data_type: TYPE_FP32, dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""
# One that batches, and one whose queue is short.
MODELS = {
    "echo": "max_batch_size: 64 dynamic_batching { }",
    "narrow": "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
}
FAILS, OWN_WORDS = 666.0, "the door is not ready"
ECHO = f"""
import os
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        while os.path.exists(os.path.join(os.path.dirname(__file__), "held")):
            time.sleep(0.01)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT__0")
        if tensor.as_numpy().ravel()[0] == {FAILS}:
            return pb_utils.InferenceResponse([], pb_utils.TritonError("{OWN_WORDS}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT__0", tensor.to_dlpack())])
"""


class Admissions(serving_pb2_grpc.AdmissionServiceServicer):
    """Anybody may infer with `echo`, `narrow` and `ghost`, which Triton has never heard of; alice not `private`."""

    def __init__(self) -> None:
        self.shares = {1: 100}
        self.asked: list[tuple[str, str, str, bool]] = []
        self.released = asyncio.Event()

    async def AdmitInference(self, request: Any, context: Any) -> serving_pb2.AdmitInferenceResponse:
        name, user = request.model_name, current_identity().user
        self.asked.append((user, name, request.version, request.is_look))
        if name == "private" and user == "alice":
            raise forbidden('inference model "private" belongs to\nanother user')
        if name == "loading":
            raise ServiceError(
                Code.UNAVAILABLE, "NOT_READY", "inference model 'loading' is EXPORTING", retry_after_seconds=3
            )
        if name == "failed":
            raise ServiceError(Code.UNAVAILABLE, "NOT_READY", "inference model 'failed' is FAILED: out of memory")
        if name == "cold":
            await self.released.wait()
            name = "echo"
        if name not in ("echo", "narrow", "ghost", "private", "stats"):
            raise not_found("inference model", name)
        shares = {int(request.version): 100} if request.version else self.shares
        return serving_pb2.AdmitInferenceResponse(
            shares=[serving_pb2.TrafficShare(version=version, percentage=part) for version, part in shares.items()],
            lifetime_seconds=LIFETIME_SECONDS,
        )


class Kernels(kernels_pb2_grpc.KernelModelServiceServicer, kernels_pb2_grpc.KernelStreamServiceServicer):
    """Answers what it is sent."""

    async def InvokeKernelModel(self, request: Any, context: Any) -> httpbody_pb2.HttpBody:
        text = json.dumps([request.name, request.body.content_type, len(request.body.data), current_identity().user])
        return httpbody_pb2.HttpBody(content_type="application/json", data=text.encode())

    async def StreamKernelTasks(self, requests: Any, context: Any) -> Any:
        async for request in requests:
            yield kernels_pb2.StreamKernelTasksResponse(id=request.id, output=current_identity().user)


class InferencePeers(Peers):
    """The inference service's stand-in."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.admissions, kernels = Admissions(), Kernels()
        package = "dlmesh.inference.v1"
        super().__init__(
            settings,
            [
                (
                    serving_pb2_grpc.add_AdmissionServiceServicer_to_server,
                    self.admissions,
                    f"{package}.AdmissionService",
                ),
                (
                    kernels_pb2_grpc.add_KernelModelServiceServicer_to_server,
                    kernels,
                    f"{package}.KernelModelService",
                ),
                (
                    kernels_pb2_grpc.add_KernelStreamServiceServicer_to_server,
                    kernels,
                    f"{package}.KernelStreamService",
                ),
            ],
        )


class Triton:
    """A server with the models `echo` and `narrow`, versions 1 and 2 of each, whose addresses the gateway reads."""

    def __init__(self, home: Path) -> None:
        installation = find_installation()
        if installation is None:
            pytest.skip("Triton is not installed: run make setup")
        self._installation, self._home = installation, home
        self._repository = home / "inference" / "repository"
        for name, more in MODELS.items():
            for version in ("1", "2"):
                folder = self._repository / name / version
                folder.mkdir(parents=True)
                (folder / "model.py").write_text(ECHO)
            (self._repository / name / "config.pbtxt").write_text(f'name: "{name}"{CONFIG}{more}')
        # Others of this process have a home of another name.
        self._prefix = f"dlmesh_rest_{os.getpid()}_{home.name}_"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """On ports of its own each time; returns when it serves its models."""
        self.ports = Ports(*[port for port in random.sample(PORTS, 50) if is_free(port)][:3])
        command = self._installation.command(self._repository, self.ports, self._prefix)
        with (self._home / "triton.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=self._installation.environment(), stdout=log, stderr=log)
        url = f"http://127.0.0.1:{self.ports.http}/v2"
        wait_until(lambda: _loads(url), 120, lambda: (self._home / "triton.log").read_text())
        publish_addresses(self._home / "inference" / "triton.json", self.ports)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Version 1 of that model takes requests and does not answer."""
        mark = self._repository / name / "1" / "held"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def model_processes(self) -> list[psutil.Process]:
        """In which its models run."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """It keeps its connections and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As by kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
        for region in SHARED_MEMORY.glob(f"{self._prefix}*"):
            region.unlink()


def _loads(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return all(requests.post(f"{url}/repository/models/{name}/load", timeout=60).ok for name in MODELS)
    return False


@contextlib.contextmanager
def running_triton(home: Path) -> Iterator[Triton]:
    """It is killed at the end."""
    triton = Triton(home)
    triton.start()
    try:
        yield triton
    finally:
        triton.kill()
