"""The framework Caffe: it passes on what the run says and ends a folder's faults with their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import caffe_nets
import pytest
from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.caffe import Caffe


def training(folder: Path) -> TrainingSpec:
    return TrainingSpec(
        code=str(folder), train_dir=str(folder / "out"), weights="w.caffemodel", data={}, framework="Caffe"
    )


def test_a_folder_that_is_no_caffe_model_ends_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def told() -> str:
        # 65: another attempt would find the same.
        with pytest.raises(SystemExit, match="65"):
            Caffe().train(training(tmp_path))
        return capsys.readouterr().err

    assert "no *solver.prototxt" in told()
    (tmp_path / "solver.prototxt").write_text('net_param { layer { name: "odd" type: "Python" } }')
    assert "layer 'odd' has the unknown type 'Python'; known: AbsVal" in told()
    (tmp_path / "solver.prototxt").write_text(f'max_iter: 1 net: "{"x" * 100_000}"')
    assert told().startswith(f"the solver names the net '{'x' * 100}...', and the model directory has no xxx")


def test_a_validation_passes_on_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(caffe_nets, "infer", lambda *places, **options: asked.append((places, options)))
    spec = ValidationSpec(str(tmp_path), "model", "input", "output", "labels.txt", 0.25, ["Top1"], framework="Caffe")
    Caffe().infer(spec, "validation.json")
    places = (str(tmp_path), "model", "input", "output", "validation.json")
    assert asked == [(places, {"threshold": 0.25, "validate": True, "label_file": "labels.txt"})]


def test_the_last_state_dict_is_the_weight_file(tmp_path: Path) -> None:
    assert Caffe().weight_file(tmp_path) is None
    for name in ("model_final.caffemodel", "model_epoch_9.pth", "model_epoch_10.pth"):
        (tmp_path / name).write_bytes(b"w")
    assert Caffe().weight_file(tmp_path) == "model_epoch_10.pth"
    (tmp_path / "model_epoch_final.pth").write_bytes(b"w")
    assert Caffe().weight_file(tmp_path) == "model_epoch_final.pth"
