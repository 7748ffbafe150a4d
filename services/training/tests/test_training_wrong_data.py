"""Templates that are given data of another kind: one line, and a code that is not tried again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lmdb
import models_service
import numpy as np
import pytest
import torch
from dlmesh_sdk.training_loop import load_weights
from dlmesh_sdk.wrong_data import UnusableError, WrongDataError
from recordkit.datum import encode_datum
from workerkit.program import end_for_wrong_data

BUILT_IN = Path(models_service.__file__).parent / "builtin"
# Every case is a child of one process, which has imported torch.
DRIVER = """
import json, os, sys
from dlmesh_sdk import training_loop
from training_service.domain.specs import TrainingSpec
from training_service.frameworks.registry import framework_named
from workerkit.program import start_apart

for framework, template, program, data in json.loads(sys.argv[1]):
    def work():
        os.environ["DLMESH_PARAMETERS"] = os.path.join(data, "parameters.json")
        spec = TrainingSpec(template, os.path.join(data, "out"), "", {}, framework=framework, program=program)
        framework_named(framework).train(spec)

    print(start_apart(work).wait(), file=sys.stderr, flush=True)
"""
CASES = [
    ("PyTorch", "pytorch-tabular", "main.py", "pictures", "a table is needed", "records in LMDB with labels"),
    ("PyTorch", "pytorch-text-classification", "main.py", "pictures", "a table is needed", "records in LMDB"),
    ("PyTorch", "pytorch-object-detection", "main.py", "pictures", "object detection dataset is needed", "LMDB"),
    ("PyTorch", "pytorch-image-to-vector", "main.py", "pictures", "vectors are needed", "records in LMDB with labels"),
    ("PyTorch", "pytorch-image-classification", "main.py", "table", "labels.txt is needed", "a table in CSV"),
    ("PyTorch", "pytorch-image-classification", "elastic-main.py", "boxes", "records of images", "images with boxes"),
    ("PyTorch", "pytorch-image-to-vector", "main.py", "boxes", "records of images are needed", "images with boxes"),
    ("Caffe", "caffe-lenet", "main.py", "boxes", "records of images are needed", "images with boxes"),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    for name in ("pictures", "table", "boxes"):
        data = {split: str(folder / name / split) for split in ("train", "test")}
        for split in data.values():
            Path(split).mkdir(parents=True)
        hyperparameter = {"maxiteration": 3, "epoch": 1}
        content = {"data": data, "hyperparameter": hyperparameter, "batch_size": 2}
        (folder / name / "parameters.json").write_text(json.dumps(content))
    pixels = np.zeros((3, 8, 8), np.uint8)
    for split in ("train", "test"):
        with lmdb.open(str(folder / "pictures" / split)) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"00000000_a", encode_datum(pixels, 1))
        (folder / "table" / split / "data.csv").write_text("a,b\n1,2\n")
        (folder / "boxes" / split / "annotations.index").write_bytes(bytes(8))
    for name in ("pictures", "boxes"):
        (folder / name / "labels.txt").write_text("cat\ndog\n")
    return folder


def ends_of(cases: Sequence[tuple[str, ...]], datasets: Path) -> list[tuple[str, str]]:
    """What each case wrote to stderr, and its exit code."""
    told = [
        (framework, str(BUILT_IN / template), program, str(datasets / data))
        for framework, template, program, data, *_ in cases
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "DLMESH_JOB_DIR": str(datasets)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(told)], env=environment, capture_output=True, text=True, check=True
    )
    lines = iter(done.stderr.splitlines())
    ends = []
    for _ in cases:
        said = []
        while not (line := next(lines)).isdigit():
            said.append(line)
        ends.append(("\n".join(said), line))
    return ends


def test_data_of_another_kind_are_one_line_and_no_second_attempt(datasets: Path) -> None:
    for case, (said, code) in zip(CASES, ends_of(CASES, datasets), strict=True):
        *_, data, needed, found = case
        assert code == str(os.EX_DATAERR), (case, said)
        assert "Traceback" not in said, case
        line = said.splitlines()[-1]
        assert needed in line.partition("; ")[0], case
        assert f"{datasets / data / 'train'} holds " in line, case
        assert found in line.rpartition(" holds ")[2], case


def test_what_lies_there_is_said(datasets: Path, tmp_path: Path) -> None:
    for path, found in (
        (datasets / "pictures" / "train", "records in LMDB with labels"),
        (datasets / "boxes" / "train", "images with boxes, as object detection has them"),
        (datasets / "table" / "train", "a table in CSV"),
        (tmp_path, "other files"),
        (tmp_path / "none", "nothing"),
    ):
        assert str(WrongDataError("a cat is needed", path)) == f"a cat is needed; {path} holds {found}"
    (tmp_path / "part-00000-of-00001").touch()
    assert str(WrongDataError("", tmp_path)).endswith("holds records in TFRecord files with no labels")


def test_weights_on_a_disk_in_trouble_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start.pth").write_bytes(b"no weights")

    def refused() -> UnusableError:
        with pytest.raises(UnusableError, match="cannot be read") as caught:
            load_weights(torch.nn.Linear(1, 1), tmp_path)
        return caught.value

    with pytest.raises(SystemExit, match="65"):
        end_for_wrong_data(refused())
    assert "cannot be read" in capsys.readouterr().err

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", broken)
    end_for_wrong_data(refused())
    assert capsys.readouterr().err == ""
