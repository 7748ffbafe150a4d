"""Makes the modules beside the tests importable, and what the tests of inference share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_room import Platform
from inference_calls import inference_platform, triton_behind
from inference_room import Triton


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One a session, for all who leave it and its Triton as they found them."""
    with inference_platform(tmp_path_factory.mktemp("inference")) as running:
        yield running


@pytest.fixture(scope="session")
def triton(platform: Platform) -> Iterator[Triton]:
    with triton_behind(platform) as server:
        yield server


@pytest.fixture
def channel(platform: Platform, triton: Triton) -> Iterator[grpc.Channel]:
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}", limits) as opened:
        yield opened
