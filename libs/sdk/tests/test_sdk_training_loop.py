"""What the loop of the PyTorch templates does beside its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import workerkit
from dlmesh_sdk import deepspeed_config
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.training_loop import Task, _Run, cross_entropy
from dlmesh_sdk.wrong_data import UnusableError


class Engine(torch.nn.Linear):
    """A module as DeepSpeed wraps it."""

    @property
    def module(self) -> torch.nn.Module:
        return self


def test_a_long_test_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parameters.json").write_text(json.dumps({"test_batch_size": 4}))
    monkeypatch.setenv("DLMESH_PARAMETERS", str(tmp_path / "parameters.json"))
    beats: list[None] = []
    monkeypatch.setattr(workerkit, "heartbeat", lambda: beats.append(None))
    data: Any = [(torch.zeros(2), 0)] * 10
    run = _Run.__new__(_Run)
    run.gang, run.monitor, run.engine = Gang(0, 0, 1, torch.device("cpu")), None, Engine(2, 2)
    run.task = Task(run.engine, data, data, cross_entropy)
    run._test()
    assert len(beats) == 3


def test_workers_that_come_and_go_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLI_IS_ELASTIC", "true")
    with pytest.raises(
        UnusableError, match=r"Elastic is for programs with FabricModel.*allowed for it: Single, Native"
    ):
        deepspeed_config.build(tmp_path / "ds_config.json", batch_size=8, world_size=2)
    monkeypatch.setenv("DLI_IS_ELASTIC", "false")
    assert deepspeed_config.build(tmp_path / "ds_config.json", batch_size=8, world_size=2)["train_batch_size"] == 8
