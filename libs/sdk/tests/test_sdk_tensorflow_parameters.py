"""tf_parameter_mgr answers from the platform's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tf_parameter_mgr
from recordkit.tfrecord import frame


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A dataset of 10 training records in two files; its test split holds no records."""
    for name, count in {"train/part.tfrecord-00000-of-00002": 6, "train/part.tfrecord-00001-of-00002": 4}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(frame(b"record") * count)
    (tmp_path / "train" / "notes.txt").touch()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "own.csv").touch()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "data.mdb").touch()
    return tmp_path


def give(monkeypatch: pytest.MonkeyPatch, folder: Path, **hyperparameter: object) -> None:
    file = folder / f"parameters-{'-'.join(hyperparameter)}.json"
    data = {split: str(folder / split) for split in ("train", "test", "val")}
    file.write_text(json.dumps({"data": data, "batch_size": 4, "test_interval": 7, "hyperparameter": hyperparameter}))
    monkeypatch.setenv("DLMESH_PARAMETERS", str(file))


def test_answers(monkeypatch: pytest.MonkeyPatch, records: Path) -> None:
    give(monkeypatch, records)
    files = [str(records / "train" / f"part.tfrecord-0000{number}-of-00002") for number in (0, 1)]
    assert tf_parameter_mgr.getTrainData() == files
    assert tf_parameter_mgr.getTrainData(False) == str(records / "train")
    assert tf_parameter_mgr.getTestData() == [str(records / "test" / "own.csv")]
    assert (tf_parameter_mgr.getTrainBatchSize(), tf_parameter_mgr.getTestInterval()) == (4, 7)
    assert tf_parameter_mgr.getBaseLearningRate() == 0.01
    assert tf_parameter_mgr.getHiddenStateSize() == 128
    give(monkeypatch, records, hiddenstatesize=7)
    assert tf_parameter_mgr.getHiddenStateSize() == 7


def test_an_lmdb_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, records: Path) -> None:
    give(monkeypatch, records)
    with pytest.raises(ValueError, match=r"is an LMDB.*import the dataset as TFRecords"):
        tf_parameter_mgr.getValData()


@pytest.mark.parametrize(
    ("hyperparameter", "epochs", "steps"),
    [({}, 10, 30), ({"epoch": 2}, 2, 6), ({"maxiteration": 7}, 3, 7), ({"epoch": 2, "maxiteration": 5}, 2, 5)],
)
def test_epochs_and_iterations_say_the_same(
    monkeypatch: pytest.MonkeyPatch, records: Path, hyperparameter: dict[str, object], epochs: int, steps: int
) -> None:
    # 10 records in batches of 4 are 3 iterations an epoch.
    give(monkeypatch, records, **hyperparameter)
    assert (tf_parameter_mgr.getEpoch(), tf_parameter_mgr.getMaxSteps()) == (epochs, steps)
