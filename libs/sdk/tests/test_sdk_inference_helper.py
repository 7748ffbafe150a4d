"""The format of result files."""

from __future__ import annotations

import json
from pathlib import Path

import inference_helper
import numpy as np
import pytest
import torch

NAMES = ["a.png", "b.png"]
PROBABILITIES = [[0.1, 0.2, 0.7], [0.5, 0.45, 0.05]]


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("cat\ndog\nhorse\n")
    return file


def test_classification_lists_labels_by_probability(label_file: Path) -> None:
    document = inference_helper.getClassificationResult(NAMES, PROBABILITIES, label_file, prob_thresh="0.15")
    assert document == {
        "type": "classification",
        "result": [
            {"sampleId": "a.png", "label": "horse", "prob": 0.7},
            {"sampleId": "a.png", "label": "dog", "prob": 0.2},
            {"sampleId": "b.png", "label": "cat", "prob": 0.5},
            {"sampleId": "b.png", "label": "dog", "prob": 0.45},
        ],
    }


def test_ground_truth_names_every_sample(label_file: Path) -> None:
    document = inference_helper.getClassificationResult(
        NAMES, PROBABILITIES, label_file, ground_truth=[2, "dog"], prob_thresh=0.6
    )
    assert [row["sampleId"] for row in document["result"]] == ["a.png"]
    assert document["samples"] == [
        {"sampleId": "a.png", "groundTruth": "horse"},
        {"sampleId": "b.png", "groundTruth": "dog"},
    ]


def test_writes_five_labels_or_all(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    inference_helper.writeClassificationResult(file, ["x"], [[0.1] * 7])
    assert len(json.loads(file.read_text())["result"]) == 5
    inference_helper.writeClassificationResult2(file, ["x"], [[0.1] * 7])
    assert [row["label"] for row in json.loads(file.read_text())["result"]] == list("0123456")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_detection(tmp_path: Path, label_file: Path) -> None:
    file = tmp_path / "out.json"
    found = [[(1, 0.9, (1, 2, 30.5, 40)), (0, 0.1, (0, 0, 1, 1))], []]
    inference_helper.writeObjectDetectionResult(file, NAMES, found, label_file, prob_thresh=0.5)
    assert json.loads(file.read_text()) == {
        "type": "detection",
        "result": [{"sampleId": "a.png", "label": "dog", "prob": 0.9, "bbox": "1,2,30.5,40"}],
    }


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 rows for 2 names"):
        inference_helper.getClassificationResult(NAMES, [[1.0]])
    with pytest.raises(ValueError, match="ground_truth: 1 entries"):
        inference_helper.getClassificationResult(NAMES, PROBABILITIES, ground_truth=[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_has_no_result(value: float) -> None:
    with pytest.raises(ValueError, match=f"probability of b.png is {value}"):
        inference_helper.getClassificationResult(NAMES, [[0.5, 0.5], [0.5, value]], prob_thresh=0.9)
    with pytest.raises(ValueError, match=f"probability of b.png is {value}"):
        inference_helper.getObjectDetectionResult(NAMES, [[], [(0, value, (0, 0, 1, 1))]], prob_thresh=0.9)


def test_scores_below_zero_are_left_out_by_a_threshold_only() -> None:
    scores = [[-1.0, -2.0]]
    assert len(inference_helper.getClassificationResult(["a"], scores)["result"]) == 2
    assert inference_helper.getClassificationResult(["a"], scores, prob_thresh=0.1)["result"] == []


def test_detections_come_in_many_forms() -> None:
    box = [1.0, 2.0, 30.5, 40.0]
    forms = [
        [(1, 0.75, box)],
        [("dog", torch.tensor(0.75), np.array(box))],
        np.array([[*box, 0.75, 1]]),
        {"boxes": torch.tensor([box]), "labels": torch.tensor([1]), "scores": torch.tensor([0.75])},
    ]
    truths = [
        [("dog", box)],
        [{"label": 1, "bbox": box}],
        {"boxes": np.array([box]), "labels": [1]},
        {"boxes": torch.tensor([box]), "labels": torch.tensor([1]), "difficult": torch.tensor([False])},
    ]
    names = ["a", "b", "c", "d"]
    document = inference_helper.getObjectDetectionResult(names, forms, ["cat", "dog"], truths)
    found = {"label": "dog", "prob": 0.75, "bbox": "1,2,30.5,40"}
    there = {"label": "dog", "bbox": "1,2,30.5,40", "difficult": False, "crowd": False}
    assert document == {
        "type": "detection",
        "result": [{"sampleId": name, **found} for name in names],
        "samples": [{"sampleId": name, "groundTruth": [there]} for name in names],
    }
    json.dumps(document)


def test_bad_detections_are_refused() -> None:
    with pytest.raises(ValueError, match="2 entries for 1 names"):
        inference_helper.getObjectDetectionResult(["a"], [[], []])
    with pytest.raises(ValueError, match="ground_truth: 0 entries"):
        inference_helper.getObjectDetectionResult(["a"], [[]], ground_truth=[])
    with pytest.raises(ValueError, match="this one has 3"):
        inference_helper.getObjectDetectionResult(["a"], [[(0, 1.0, (1, 2, 3))]])


def test_probabilities_and_truth_may_be_tensors(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    inference_helper.writeClassificationResult2(
        file, NAMES, torch.tensor(PROBABILITIES), ["x", "y", "z"], torch.tensor([2, 1]), 0.5
    )
    document = json.loads(file.read_text())
    assert [row["label"] for row in document["result"]] == ["z", "x"]
    assert [row["groundTruth"] for row in document["samples"]] == ["z", "y"]


def test_vectors(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    inference_helper.writeVectorResult(file, NAMES, torch.tensor([[0.5, 1.0], [2.0, 3.0]]), [[0, 1], [2, 3]])
    assert json.loads(file.read_text()) == {
        "type": "vector",
        "result": [{"sampleId": "a.png", "vector": [0.5, 1.0]}, {"sampleId": "b.png", "vector": [2.0, 3.0]}],
        "samples": [{"sampleId": "a.png", "groundTruth": [0.0, 1.0]}, {"sampleId": "b.png", "groundTruth": [2.0, 3.0]}],
    }
    inference_helper.writeVectorResult(file, ["a"], [0.5])
    assert json.loads(file.read_text())["result"] == [{"sampleId": "a", "vector": [0.5]}]
    with pytest.raises(ValueError, match="1 rows for 2 names"):
        inference_helper.writeVectorResult(file, NAMES, [[1]])


def test_the_command_line_of_inference_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["--model", "m", "--input_dir", "i", "--output_dir", "o", "--output_file", "r.json"]
    monkeypatch.setattr("sys.argv", ["inference.py", *needed])
    plain = vars(inference_helper.parse_arguments("pictures"))
    assert plain == {
        "model": Path("m"),
        "input_dir": "i",
        "output_dir": Path("o"),
        "output_file": "r.json",
        "prob_thresh": "0",
        "validate": False,
        "label_file": "",
    }
    monkeypatch.setattr("sys.argv", ["inference.py", *needed, "--validate", "True", "--prob_thresh", "", "--more", "x"])
    given = vars(inference_helper.parse_arguments("pictures"))
    assert given == plain | {"validate": True, "prob_thresh": ""}
    monkeypatch.setattr("sys.argv", ["inference.py", "--validate", ""])
    with pytest.raises(SystemExit):
        inference_helper.parse_arguments("pictures")
    assert "--model, --input_dir" in capsys.readouterr().err
