"""`dlmesh kernel` against a platform: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from kernel_programs import CANNOT_START, PING_PONG

pytestmark = [pytest.mark.platform, pytest.mark.slow]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(platform: RunningPlatform, admin: Client) -> Iterator[Run]:
    """`run("list")`; no model is left."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH_")}

    def kernel(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "dlmesh_platform.cli", "kernel", *words],
            env={**inherited, "DLMESH_HOME": str(platform.home), "COLUMNS": "150"},
            input=given,
            capture_output=True,
            text=True,
            timeout=180,
        )

    yield kernel
    for model in admin.get("/edimodels"):
        assert kernel("undeploy", "-f", model["name"]).returncode == 0


def test_a_model_from_its_folder_to_its_end(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "anything"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "left.pyc").write_text("out")
    (folder / "kernel.py").write_text(PING_PONG)
    (folder / "model.json").write_text(json.dumps({"name": "pong", "tag": "v1", "weight_path": "w.bin"}))
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (folder / "w.bin").symlink_to(tmp_path / "elsewhere")
    assert "No models" in run("list").stdout
    deployed = run("deploy", "-p", str(folder), "--start")
    assert (deployed.returncode, deployed.stderr) == (0, "")
    assert "pong takes tasks: http://127.0.0.1:" in deployed.stdout
    again = run("deploy", "-p", str(folder))
    assert (again.returncode, "exists already" in again.stderr) == (1, True)

    assert run("test", "pong", "ping").stdout == "pong ping\n"
    assert run("test", "pong", "-", given="from a pipe").stdout == "pong from a pipe\n"
    [line] = [line for line in run("list").stdout.splitlines() if "pong" in line]
    assert all(word in line for word in ("STARTED", "1 to 2", "v1", "Admin"))
    view = run("view", "pong").stdout
    assert "STARTED" in view
    assert "0 tasks wait" in view
    shown = json.loads(run("view", "pong", "--json").stdout)
    [container] = shown["instances"][0]["isd_container"]
    assert container["finish_task"] == 2
    model = Path(shown["model"]["model_path"])
    assert (model / "w.bin").read_bytes() == b"weights"
    assert not (model / "__pycache__" / "left.pyc").exists()

    refused = run("profile", "pong", "--set", "policy.kernel_min=0")
    assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
    assert run("undeploy", "pong").returncode == 1
    assert run("stop", "pong").stdout == "pong is stopped\n"
    changed = run("profile", "pong", "-s", "policy.kernel_min=0", "-s", "kernel.umask=027", "-s", "type=kind")
    profile = json.loads(changed.stdout)
    assert (profile["policy"]["kernel_min"], profile["kernel"]["umask"], profile["type"]) == (0, "027", "kind")
    (tmp_path / "profile.json").write_text(json.dumps({"policy": {"kernel_max": 0}}))
    wrong = run("profile", "pong", "-f", str(tmp_path / "profile.json"))
    assert (wrong.returncode, "policy.kernel_max" in wrong.stderr) == (1, True)
    assert run("undeploy", "pong").stdout == "pong is removed\n"
    gone = run("view", "pong")
    assert (gone.returncode, "'pong' does not exist" in gone.stderr) == (1, True)


def test_one_that_cannot_start_is_told_with_its_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(CANNOT_START)
    failed = run("deploy", "-p", str(tmp_path), "-n", "broken", "--start")
    assert failed.returncode == 1
    assert "broken is FAILED" in failed.stderr
    assert "there are no weights" in failed.stderr
    [line] = [line for line in run("list").stdout.splitlines() if "broken" in line]
    assert "FAILED" in line
