"""A model that takes no more requests now is busy: neither dead, nor a reason to blame a sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from inference_service.clients.triton import TritonClient
from inference_service.triton.messages import QUEUE_FULL
from inference_service.triton.probes import PARAMETER, probe_with_item
from inference_service.worker import triton_client
from inference_service.worker.triton_client import Client, LateCallError
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

FULL = InferenceServerException(f"[request id: <id_unknown>] {QUEUE_FULL}", "StatusCode.UNAVAILABLE")


class FullServer:
    """Refuses so many requests."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def infer(self, *_: Any, **__: Any) -> Any:
        self.refusals -= 1
        if self.refusals >= 0:
            raise FULL
        outputs = [SimpleNamespace(name="RESULT")]
        return SimpleNamespace(get_response=lambda: SimpleNamespace(outputs=outputs), as_numpy=lambda _: np.zeros(1))


def client_of(server: FullServer, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(triton_client, "RETRY_SECONDS", 0.0)
    client = Client(Path("none"), "busy", 1)
    monkeypatch.setattr(client, "_connected", lambda: server)
    return client


def test_a_prediction_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(client_of(FullServer(3), monkeypatch).infer({}, 600.0)) == ["RESULT"]


def test_but_not_for_longer_than_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LateCallError, match=QUEUE_FULL):
        client_of(FullServer(10**9), monkeypatch).infer({}, 0.01)


async def test_whoever_watches_it_learns_that_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config_pb2.ModelConfig()
    config.parameters[PARAMETER].string_value = probe_with_item(b"x")

    class Server:
        async def get_model_config(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(config=config)

        async def infer(self, *_: Any, **__: Any) -> Any:
            raise FULL

    async def connected() -> Server:
        return Server()

    client = TritonClient(lambda: "nowhere")
    monkeypatch.setattr(client, "_connected", connected)
    assert await client.answers("busy", 1) is None
