"""What the client makes of a Triton's answers, without one."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from inference_service.clients.triton import TritonClient
from inference_service.triton.probes import PARAMETER
from inference_service.usecases.ports import LoadRefusedError, ServerAwayError, ServerEndedError
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException


class Answers:
    """Of tritonclient's, as far as it is asked."""

    def __init__(self, status: str = "", probe: str = "") -> None:
        self.status, self.probe = status, probe

    async def get_model_repository_index(self, **_: Any) -> Any:
        raise InferenceServerException("no", self.status)

    async def get_model_config(self, *_: Any, **__: Any) -> Any:
        config = ModelConfig()
        config.parameters[PARAMETER].string_value = self.probe
        return SimpleNamespace(config=config)


def client_of(answers: Answers) -> TritonClient:
    client = TritonClient(lambda: "played")
    client._client, client._client_address = answers, "played"
    return client


@pytest.mark.parametrize(
    ("status", "has_ended"), [("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", False), ("CANCELLED", False)]
)
async def test_only_a_broken_connection_is_an_end(status: str, has_ended: bool) -> None:
    with pytest.raises(ServerAwayError) as caught:
        await client_of(Answers(f"StatusCode.{status}")).loaded()
    assert isinstance(caught.value, ServerEndedError) is has_ended


async def test_a_model_that_wants_too_large_a_probe_is_refused() -> None:
    probe = {"inputs": {"INPUT__0": ["FP32", [1, 3, 40_000, 40_000], 0]}, "probabilities": True}
    with pytest.raises(LoadRefusedError, match="4800000000 numbers"):
        await client_of(Answers(probe=json.dumps(probe))).probe("large", 1)
