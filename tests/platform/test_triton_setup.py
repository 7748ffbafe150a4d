"""Set-up of Triton: idempotent, and never a folder that does not work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dlmesh_platform import triton_setup
from dlmesh_platform.triton_setup import MARKER, WHEEL, TritonSetupError, install_triton
from inference_service.triton.installation import Installation, find_installation


def unpack_broken(target: Path) -> None:
    """A wheel whose server ends at once."""
    server = Installation(target)
    stub = target / "pytriton" / "tritonserver" / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    for program in (server.binary, stub, server.backends / "python" / "libtriton_python.so"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\necho no such device >&2\nexit 3\n")


def test_what_is_installed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installation = find_installation()
    if installation is None:
        pytest.skip("Triton is not installed: run make setup")
    assert json.loads((installation.home / MARKER).read_text())["wheel"] == WHEEL
    monkeypatch.setattr(triton_setup, "_unpack", lambda target: pytest.fail("it was unpacked again"))
    install_triton(installation.home)


@pytest.mark.triton
def test_what_is_installed_starts() -> None:
    installation = find_installation()
    if installation is None:
        pytest.skip("Triton is not installed: run make setup")
    triton_setup.check(installation)


def test_a_server_that_does_not_start_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_setup, "_unpack", unpack_broken)
    with pytest.raises(TritonSetupError, match=r"ended with code 3(.|\n)*no such device"):
        install_triton(tmp_path / "triton")
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_stub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_setup, "_unpack", unpack_broken)
    monkeypatch.setattr(triton_setup.sys, "version_info", type("V", (), {"major": 3, "minor": 7}))
    with pytest.raises(TritonSetupError, match=r"no stub for Python 3\.7; it has 3\.11"):
        install_triton(tmp_path / "triton")
