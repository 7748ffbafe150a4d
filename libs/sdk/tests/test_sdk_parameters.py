"""pth_parameter_mgr answers from the platform's file; deepspeed_config completes ds_config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pth_parameter_mgr
import pytest
from dlmesh_sdk import deepspeed_config


def give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parameters: dict[str, object]) -> None:
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps(parameters))
    monkeypatch.setenv("DLMESH_PARAMETERS", str(file))


def test_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data.mdb").touch()
    give(
        monkeypatch,
        tmp_path,
        {
            "data": {"train": str(tmp_path / "train"), "test": "/test", "val": "/val"},
            "batch_size": 16,
            "hyperparameter": {"epoch": 3, "maxiteration": 0},
            "test_interval": 7,
            "test_iteration": 2,
        },
    )
    assert pth_parameter_mgr.getTrainData(False) == str(tmp_path / "train")
    assert pth_parameter_mgr.getTrainData(True) == [str(tmp_path / "train" / "data.mdb")]
    assert (pth_parameter_mgr.getTestData(), pth_parameter_mgr.getValData()) == ("/test", "/val")
    assert (pth_parameter_mgr.getTrainBatchSize(), pth_parameter_mgr.getTestBatchSize()) == (16, 16)
    assert (pth_parameter_mgr.getEpoch(), pth_parameter_mgr.getMaxSteps()) == (3, 0)
    assert (pth_parameter_mgr.getTestInterval(), pth_parameter_mgr.getTestIteration()) == (7, 2)


def test_defaults_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give(monkeypatch, tmp_path, {})
    assert pth_parameter_mgr.getTrainBatchSize() == 32
    assert (pth_parameter_mgr.getEpoch(), pth_parameter_mgr.getTestInterval()) == (10, 100)
    with pytest.raises(RuntimeError, match="no val split"):
        pth_parameter_mgr.getValData()


def test_says_what_is_missing_outside_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLMESH_PARAMETERS", raising=False)
    with pytest.raises(RuntimeError, match="DLMESH_PARAMETERS is not set"):
        pth_parameter_mgr.getEpoch()


@pytest.mark.parametrize(
    ("config", "environment", "stage"),
    [
        (None, None, 1),
        (None, "3", 3),
        ({}, "2", 2),
        ({"zero_optimization": {"stage": 0}}, "2", 0),
        ({"zero_optimization": {"stage": 2}}, None, 2),
    ],
)
def test_zero_stage_comes_from_the_model_first(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: dict[str, object] | None,
    environment: str | None,
    stage: int,
) -> None:
    monkeypatch.delenv("DLMESH_ZERO_STAGE", raising=False)
    if environment:
        monkeypatch.setenv("DLMESH_ZERO_STAGE", environment)
    file = tmp_path / "ds_config.json"
    if config is not None:
        file.write_text(json.dumps(config))
    assert deepspeed_config.build(file, batch_size=8, world_size=2)["zero_optimization"]["stage"] == stage


def test_batch_size_is_global_and_divides(tmp_path: Path) -> None:
    config = deepspeed_config.build(tmp_path / "none.json", batch_size=65, world_size=2)
    assert config["train_batch_size"] == 66
    assert config["train_micro_batch_size_per_gpu"] == 33


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage.*: 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 2"),
    ],
)
def test_configuration_that_cannot_work_is_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        deepspeed_config.build(file, batch_size=8, world_size=1)
