"""Rules of the house that no linter knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("datasets", "models", "training", "tuning", "inference", "scheduling")
BANNED_NAMES = {"utils", "helpers", "common", "misc", "manager", "util", "helper"}
HEAVY = ("torch", "tensorflow", "deepspeed", "pyspark", "pandas", "numpy", "PIL")


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / line for line in listed.splitlines()]


def test_no_file_is_named_after_nothing() -> None:
    assert [path for path in python_files() if path.stem in BANNED_NAMES] == []


def test_every_service_is_built_on_one_plan() -> None:
    for name in SERVICES:
        house = ROOT / "services" / name
        package = house / f"{name}_service"
        for part in ("README.md", f"{name}_service/__main__.py", f"{name}_service/wiring.py", f"{name}_service/api"):
            assert (house / part).exists(), f"{name} lacks {part}"
        assert any((package / "storage" / "migrations" / "versions").glob("*.py")), f"{name} has no migration"


@pytest.mark.parametrize("package", [*(f"{name}_service" for name in SERVICES), "gateway_service"])
def test_control_plane_processes_stay_light(package: str) -> None:
    """Importing a service's wiring must not pull a deep-learning framework into the control plane."""
    program = f"import sys, {package}.wiring\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert shown.strip() == "[]"
