"""What the environment may say of a Triton that somebody else runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference_service.settings import FEWEST_LOADED_MODELS, TritonSettings
from servicekit import machine
from servicekit.settings import SettingError


@pytest.mark.parametrize(
    ("url", "grpc", "expected"),
    [
        ("", "", ("", "")),
        ("http://triton:9000", "", ("http://triton:9000", "triton:9001")),
        ("http://triton:9000/", "other:7", ("http://triton:9000", "other:7")),
        ("http://triton", "", ("http://triton:8000", "triton:8001")),
        ("http://triton:9000", "other", ("http://triton:9000", "other:8001")),
        ("http://[::1]:9000", "", ("http://[::1]:9000", "[::1]:9001")),
    ],
)
def test_addresses_have_ports(url: str, grpc: str, expected: tuple[str, str]) -> None:
    settings = TritonSettings.from_environment({"DLMESH_TRITON_URL": url, "DLMESH_TRITON_GRPC": grpc})
    assert (settings.url, settings.grpc) == expected


@pytest.mark.parametrize("grpc", ["", "triton:8001"])
@pytest.mark.parametrize(
    "url", ["triton:8000", "https://triton", "http://", "http://triton:x", "http://a@triton", "http://triton/v2"]
)
def test_an_address_that_is_none_is_refused_by_name(url: str, grpc: str) -> None:
    with pytest.raises(SettingError, match="DLMESH_TRITON_URL"):
        TritonSettings.from_environment({"DLMESH_TRITON_URL": url, "DLMESH_TRITON_GRPC": grpc})


@pytest.mark.parametrize("grpc", ["http://triton:8001", "triton:x", ":8001", "triton:8001/x"])
def test_so_is_that_of_grpc(grpc: str) -> None:
    with pytest.raises(SettingError, match="DLMESH_TRITON_GRPC"):
        TritonSettings.from_environment({"DLMESH_TRITON_URL": "http://triton:8000", "DLMESH_TRITON_GRPC": grpc})


def test_limits_of_memory_are_parts_of_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CONTAINER_LIMIT", tmp_path / "memory.max")
    machine.CONTAINER_LIMIT.write_text("1073741824\n")
    settings = TritonSettings.from_environment({})
    assert (settings.model_memory_bytes, settings.max_loaded_models) == (512 * 1024**2, FEWEST_LOADED_MODELS)
