"""Set-up skips what is done, does again what changed, and goes on where it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from dlmesh_platform import bootstrap
from dlmesh_platform.bootstrap import Step, run_steps


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    monkeypatch.setattr(bootstrap, "STAMPS", tmp_path / "stamps")
    return []


def a_step(tmp_path: Path, done: list[str], *, fails: bool = False) -> Step:
    def run() -> None:
        done.append("ran")
        if fails:
            raise RuntimeError("killed")
        (tmp_path / "result").touch()

    return Step("one step", [tmp_path / "input"], tmp_path / "result", run)


def test_runs_once_and_again_when_the_input_changed(tmp_path: Path, done: list[str]) -> None:
    (tmp_path / "input").write_text("1")
    run_steps([a_step(tmp_path, done)])
    run_steps([a_step(tmp_path, done)])
    assert len(done) == 1
    (tmp_path / "input").write_text("2")
    run_steps([a_step(tmp_path, done)])
    assert len(done) == 2
    (tmp_path / "result").unlink()
    run_steps([a_step(tmp_path, done)])
    assert len(done) == 3
    run_steps([a_step(tmp_path, done)], force="one step")
    assert len(done) == 4


def test_a_step_that_failed_is_not_done(tmp_path: Path, done: list[str]) -> None:
    (tmp_path / "input").write_text("1")
    (tmp_path / "result").touch()
    with pytest.raises(RuntimeError, match="killed"):
        run_steps([a_step(tmp_path, done, fails=True)])
    run_steps([a_step(tmp_path, done)])
    assert len(done) == 2


def test_steps_depend_on_files_that_exist() -> None:
    assert [str(path) for step in bootstrap.steps() for path in step.inputs if not path.exists()] == []
    assert [str(root) for root in bootstrap.IMPORT_ROOTS if not root.is_dir()] == []


def test_locks_pin_every_direct_dependency_exactly() -> None:
    pins: dict[str, str] = {}
    for name in ("requirements", "requirements-dev"):
        pins |= dict(
            line.split("==") for line in (bootstrap.ROOT / f"{name}.lock").read_text().splitlines() if "==" in line
        )
        wanted = [line.split("#")[0].strip() for line in (bootstrap.ROOT / f"{name}.in").read_text().splitlines()]
        names = [line.split("[")[0].split("=")[0].split("<")[0].split(">")[0] for line in wanted if line]
        assert [each for each in names if each not in pins] == []
        assert [pin for pin in pins.values() if "+" in pin] == []
