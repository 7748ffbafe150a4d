"""What the service is built from."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference_fakes import FakeServer
from inference_service.kernels.settings import KernelModelSettings
from inference_service.settings import TritonSettings
from inference_service.wiring import build
from kernel_fakes import FakePools
from testkit.services import settings_for


async def test_kernels_are_of_the_settings_and_in_the_pools_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLMESH_MAX_KERNELS", "not read")
    kernels, pools = KernelModelSettings(max_tasks=7), FakePools()
    built = build(
        settings_for("inference", tmp_path), TritonSettings(), server=FakeServer(), kernels=kernels, pools=pools
    )
    assert built.settings["kernels"] is kernels
    assert pools.close in built.shutdown
