"""The format of result files."""

from __future__ import annotations

import json
from pathlib import Path

import inference_helper
import pytest

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
