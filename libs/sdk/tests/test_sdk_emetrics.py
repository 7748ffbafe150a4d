"""The files that emetrics and elog write."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elog import ELog
from emetrics import EMetrics


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SUBID", "JOB_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAINING_ID", "t-1")
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "log"))
    monkeypatch.setenv("RESULT_DIR", str(tmp_path / "result"))


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_record_has_the_published_form(tmp_path: Path) -> None:
    with EMetrics.open() as metrics:
        metrics.record("train", 7, {"loss": torch.tensor(0.5), "right": np.int64(12), "note": "warm", "n": 3})
        metrics.record(EMetrics.TEST_GROUP, 7, {"loss": float("nan")})
    first, second = records(tmp_path / "log" / "evaluation-metrics.txt")
    assert isinstance(first["meta"].pop("time"), int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", first["etimes"].pop("time_stamp")["value"])
    assert first == {
        "meta": {"training_id": "t-1", "rindex": 1},
        "grouplabel": "train",
        "etimes": {"iteration": {"type": 2, "value": "7"}},
        "values": {
            "loss": {"type": 3, "value": "0.5"},
            "right": {"type": 2, "value": "12"},
            "note": {"value": "warm"},
            "n": {"type": 2, "value": "3"},
        },
    }
    assert (second["meta"]["rindex"], second["grouplabel"], second["values"]) == (2, "test", {"loss": {"value": "nan"}})
    # Not a trial: nobody waits for its result.
    assert not (tmp_path / "result").exists()


def test_a_trial_leaves_its_test_records_as_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBID", "trial-3")
    # As published callbacks do: opened and closed for every record; a step that is recorded again counts once.
    for group, step, loss in (("test", 1, 0.9), ("train", 2, 0.8), ("test", 2, 0.7), ("test", 2, 0.6)):
        with EMetrics.open() as metrics:
            metrics.record(group, step, {"loss": loss})
    result = json.loads((tmp_path / "result" / "val_dict_list.json").read_text())
    assert result == [{"steps": 1, "loss": 0.9}, {"steps": 2, "loss": 0.6}]
    rows = records(tmp_path / "log" / "trial-3" / "evaluation-metrics.txt")
    assert [(row["meta"]["subid"], row["grouplabel"]) for row in rows] == [
        ("trial-3", group) for group in ("test", "train", "test", "test")
    ]
    # What the program itself left there and we cannot read does not end the training.
    (tmp_path / "result" / "val_dict_list.json").write_text('{"steps": ')
    with EMetrics.open("other") as metrics:
        metrics.record("test", 5, {"loss": 1})
    assert json.loads((tmp_path / "result" / "val_dict_list.json").read_text()) == [{"steps": 5, "loss": 1}]


def test_where_the_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOG_DIR")
    monkeypatch.setenv("JOB_STATE_DIR", str(tmp_path / "state"))
    EMetrics.open().record("test", 1, {"loss": 1})
    assert len(records(tmp_path / "state" / "logs" / "evaluation-metrics.txt")) == 1
    monkeypatch.delenv("JOB_STATE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    EMetrics.open("s").record("test", 1, {"loss": 1})
    assert len(records(tmp_path / "temporary" / "s" / "evaluation-metrics.txt")) == 1
    for name in ("../out", "..", "a/b"):
        with pytest.raises(ValueError, match="subId"):
            EMetrics.open(name)


@pytest.mark.parametrize("module", [EMetrics, ELog])
def test_a_full_disk_does_not_end_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "file" / "log"))
    with module.open("trial") as log:
        for step in range(3):
            log.record("test", step, {"loss": 1.0} if module is EMetrics else 1.0)
    assert capsys.readouterr().err.count("not written any more") == 1


def test_elog_lines(tmp_path: Path) -> None:
    with ELog.open() as log:
        log.record("Train", 10, torch.tensor(0.25), 0.5, global_steps=40)
        log.record("Test", 10, 0.125)
    first, second = (tmp_path / "log" / "stdout").read_text().splitlines()
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    tail = r",\tTimestamp: \d{13},\tGlobal steps: 40,\tIteration: 10,\tLoss: 0.25,\tAccuracy: 0.5"
    assert re.fullmatch(f"{stamp}Train{tail}", first)
    assert re.search(r"Test,.*Global steps: 10,\tIteration: 10,\tLoss: 0.125,\tAccuracy: $", second)
