"""The metrics of result files, compared with scikit-learn, pycocotools and cases worked out by hand."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import inference_helper
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics as sklearn_metrics
from training_service.domain.runs import (
    CLASSIFICATION_METRICS,
    DETECTION_METRICS,
    VALIDATION_METRICS,
    VECTOR_METRICS,
    metrics_of,
)
from training_service.worker import classification_metrics, detection_metrics, vector_metrics
from training_service.worker.result_file import read_result
from training_service.worker.result_metrics import measure

LABELS = ["cat", "dog", "horse", "cow", "sheep", "goat", "hen"]


def classified(tmp_path: Path, **options: Any) -> tuple[Path, np.ndarray, np.ndarray]:
    """A result file, its probabilities and its truth."""
    random = np.random.default_rng(1)
    truth = random.integers(0, len(LABELS), 200)
    scores = random.random((200, len(LABELS))) + np.eye(len(LABELS))[truth] * 0.5
    probabilities = scores / scores.sum(1, keepdims=True)
    file = tmp_path / "result.json"
    names = [f"{number}.png" for number in range(200)]
    inference_helper.writeClassificationResult(file, names, probabilities, LABELS, truth, **options)
    return file, probabilities, truth


def test_classification_agrees_with_scikit_learn(tmp_path: Path) -> None:
    file, probabilities, truth = classified(tmp_path)
    values = measure(file, CLASSIFICATION_METRICS, LABELS, 0.0)
    assert float(values["Top1"]) == pytest.approx(sklearn_metrics.accuracy_score(truth, probabilities.argmax(1)))
    assert float(values["Top5"]) == pytest.approx(sklearn_metrics.top_k_accuracy_score(truth, probabilities, k=5))
    matrix = json.loads(values["ConfusionMatrix"])
    assert matrix["labels"] == LABELS
    assert matrix["matrix"] == sklearn_metrics.confusion_matrix(truth, probabilities.argmax(1)).tolist()


def test_labels_below_the_threshold_count_as_wrong(tmp_path: Path) -> None:
    # The program ignores --prob_thresh; the platform does not.
    file, probabilities, truth = classified(tmp_path)
    threshold = float(np.median(probabilities.max(1)))
    values = measure(file, ["Top1", "ConfusionMatrix"], LABELS, threshold)
    sure = probabilities.max(1) >= threshold
    right = (probabilities.argmax(1) == truth) & sure
    assert float(values["Top1"]) == pytest.approx(right.mean())
    assert sum(map(sum, json.loads(values["ConfusionMatrix"])["matrix"])) == sure.sum() < 200


def test_vectors_agree_with_scikit_learn(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    truth = random.random((50, 3))
    predicted = truth + random.normal(0, 0.1, truth.shape)
    names = [str(number) for number in range(50)]
    file = tmp_path / "result.json"
    inference_helper.writeVectorResult(file, names, predicted, truth)
    values = {name: float(value) for name, value in measure(file, VECTOR_METRICS, [], 0.0).items()}
    assert values == {
        "MAE": pytest.approx(sklearn_metrics.mean_absolute_error(truth, predicted), rel=1e-5),
        "RMSE": pytest.approx(sklearn_metrics.mean_squared_error(truth, predicted) ** 0.5, rel=1e-5),
        "R2": pytest.approx(sklearn_metrics.r2_score(truth, predicted), rel=1e-5),
    }
    constant = np.column_stack([truth[:, :1], np.ones((50, 2))])
    guess = constant + np.array([0.01, 0, 0.5])
    assert vector_metrics.r2(guess, constant) == pytest.approx(sklearn_metrics.r2_score(constant, guess))
    # The mean of three times 0.1 is not 0.1.
    tenths = np.column_stack([[0.1] * 3, [1.0, 2.0, 3.0]])
    assert vector_metrics.r2(tenths + np.array([[0.1, 0], [0, 0], [0, 0]]), tenths) == 0.5
    assert vector_metrics.r2(tenths, tenths) == 1


class Scene:
    """Random objects and what a middling detector would say about them."""

    def __init__(self, *, crowds: bool = False, difficult: bool = False) -> None:
        random = np.random.default_rng(3)
        self.truth: list[list[dict[str, Any]]] = []
        self.found: list[list[tuple[int, float, list[float]]]] = []
        for _ in range(40):
            truth, found = [], []
            for _ in range(random.integers(0, 5)):
                label = int(random.integers(0, 3))
                xmin, ymin = random.uniform(0, 60, 2)
                box = [xmin, ymin, xmin + random.uniform(8, 40), ymin + random.uniform(8, 40)]
                is_crowd = crowds and random.random() < 0.2
                is_difficult = difficult and random.random() < 0.3
                truth.append({"label": LABELS[label], "bbox": box, "crowd": is_crowd, "difficult": is_difficult})
                # pycocotools lets only one box find what it ignores for its size.
                for _ in range(random.integers(0, 2 if is_difficult else 3)):
                    said = label if random.random() < 0.9 else (label + 1) % 3
                    shifted = np.sort((np.array(box) + random.normal(0, 3, 4)).reshape(2, 2), axis=0)
                    found.append((said, float(random.random()), shifted.ravel().tolist()))
            self.truth.append(truth)
            self.found.append(found)
        self.names = [f"{number}.jpg" for number in range(40)]

    def write(self, file: Path) -> Path:
        inference_helper.writeObjectDetectionResult(file, self.names, self.found, LABELS, self.truth)
        return file


def coco_stats(scene: Scene) -> Any:
    """What pycocotools itself says, by its own way in: files, `loadRes`, `summarize`."""
    truth, found = COCO(), []
    annotations: list[dict[str, Any]] = []
    for number, objects in enumerate(scene.truth):
        for true in objects:
            x, y, right, bottom = true["bbox"]
            box = {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
            category = LABELS.index(true["label"]) + 1
            facts = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            if true["difficult"]:
                # What is out of the range of sizes need not be found, and overlaps as every object does.
                box["area"] = 1e11
            annotations.append(facts | box | {"iscrowd": int(true["crowd"])})
    for number, boxes in enumerate(scene.found):
        for label, score, (x, y, right, bottom) in boxes:
            box = [x, y, right - x, bottom - y]
            found.append({"image_id": number, "category_id": label + 1, "bbox": box, "score": score})
    truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(len(scene.truth))],
        "categories": [{"id": number + 1, "name": LABELS[number]} for number in range(3)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize(("crowds", "difficult"), [(False, False), (True, False), (False, True)])
def test_coco_precision_is_that_of_pycocotools(tmp_path: Path, crowds: bool, difficult: bool) -> None:
    scene = Scene(crowds=crowds, difficult=difficult)
    values = measure(scene.write(tmp_path / "result.json"), ["mAP", "mAP50"], LABELS, 0.0)
    stats = coco_stats(scene)
    assert 0.05 < stats[0] < 0.9
    assert float(values["mAP"]) == pytest.approx(stats[0], abs=1e-5)
    assert float(values["mAP50"]) == pytest.approx(stats[1], abs=1e-5)


def test_voc_precision_is_near_that_of_coco_at_the_same_overlap(tmp_path: Path) -> None:
    # Another integral (all points instead of 101) over the same curve.
    values = measure(Scene().write(tmp_path / "result.json"), ["mAP50", "mAP_VOC", "mAP_VOC07"], LABELS, 0.0)
    assert float(values["mAP_VOC"]) == pytest.approx(float(values["mAP50"]), abs=0.02)
    assert float(values["mAP_VOC07"]) == pytest.approx(float(values["mAP50"]), abs=0.1)


def true(label: str, *box: float, difficult: bool = False, crowd: bool = False) -> dict[str, Any]:
    return {"label": label, "bbox": box, "difficult": difficult, "crowd": crowd}


def pictures(tmp_path: Path, truth: list[Any], found: list[Any], threshold: float = 0.0) -> list[Any]:
    names = [str(number) for number in range(len(truth))]
    file = tmp_path / "result.json"
    inference_helper.writeObjectDetectionResult(file, names, found, ground_truth=truth)
    return detection_metrics.read_images(read_result(file, names), [], threshold)


def test_voc_precision_worked_out_by_hand(tmp_path: Path) -> None:
    truth = [[true("a", 0, 0, 10, 10), true("a", 20, 0, 30, 10)], [true("a", 0, 0, 10, 10)], []]
    found = [
        [("a", 0.9, (0, 0, 10, 10)), ("a", 0.8, (0, 0, 10, 9))],  # right; the same object again: wrong
        [("a", 0.7, (0, 0, 10, 10))],  # right
        [("a", 0.6, (0, 0, 10, 10))],  # nothing there: wrong
    ]
    images = pictures(tmp_path, truth, found)
    # Recall 1/3, 1/3, 2/3, 2/3 at precision 1, 1/2, 2/3, 1/2.
    assert detection_metrics.voc_map(images) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    # Points 0 to .3 have precision 1, .4 to .6 have 2/3, the rest 0.
    assert detection_metrics.voc07_map(images) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_difficult_objects_are_neither_missed_nor_found_wrongly(tmp_path: Path) -> None:
    easy, hard = true("a", 0, 0, 10, 10), true("a", 20, 0, 30, 10, difficult=True)
    for found in ([("a", 0.5, (0, 0, 10, 10))], [("a", 0.9, (20, 0, 30, 10)), ("a", 0.5, (0, 0, 10, 10))]):
        images = pictures(tmp_path, [[easy, hard]], [found])
        assert {name: metric(images) for name, metric in detection_metrics.METRICS.items()} == {
            name: pytest.approx(1.0) for name in DETECTION_METRICS
        }
    with pytest.raises(ValueError, match="no object that counts"):
        pictures(tmp_path, [[hard]], [[]])


def test_a_crowd_is_found_by_what_lies_in_it_and_a_difficult_object_by_what_fits_it(tmp_path: Path) -> None:
    """Worked out by hand: one object, one box on it, and a surer box of a quarter of the other object."""
    easy, sure, quarter = true("a", 0, 0, 10, 10), ("a", 0.5, (0, 0, 10, 10)), ("a", 0.9, (20, 0, 25, 5))
    names = ("mAP", "mAP50", "mAP_VOC", "mAP_VOC07")

    def values(other: dict[str, Any], *more: Any) -> list[float]:
        images = pictures(tmp_path, [[easy, other]], [[quarter, sure, *more]])
        return [detection_metrics.METRICS[name](images) for name in names]

    # It lies in the crowd and does not count.
    assert values(true("a", 20, 0, 30, 10, crowd=True)) == pytest.approx([1.0] * 4)
    # It does not fit the difficult object and is wrong: precision 0, then 1/2 at recall 1.
    assert values(true("a", 20, 0, 30, 10, difficult=True)) == pytest.approx([0.5] * 4)
    # Half of it lies in the crowd, which is enough at .5 and no other overlap of COCO's ten.
    assert values(true("a", 20, 0, 22.5, 5, crowd=True)) == pytest.approx([0.1 + 0.9 * 0.5, 1.0, 1.0, 1.0])
    # An object within a crowd is found all the same; the second box on it belongs to the crowd.
    around, again = true("a", 0, 0, 30, 30, crowd=True), ("a", 0.7, (0, 0, 10, 9))
    assert values(around, again) == pytest.approx([1.0] * 4)
    # Any number of boxes may be on what need not be found.
    twice = [("a", 0.8, (20, 0, 30, 10)), ("a", 0.7, (20, 0, 30, 10))]
    assert values(true("a", 20, 0, 30, 10, difficult=True), *twice) == pytest.approx([0.5] * 4)
    assert values(true("a", 20, 0, 30, 10, crowd=True), *twice) == pytest.approx([1.0] * 4)


def test_iou_is_the_mean_over_the_objects(tmp_path: Path) -> None:
    truth = [[true("a", 0, 0, 10, 10), true("a", 50, 50, 60, 60)], [true("b", 0, 0, 10, 10)]]
    found = [
        # The surest box takes the object; the better one comes too late.
        [("a", 0.9, (0, 0, 10, 5)), ("a", 0.8, (0, 0, 10, 10)), ("a", 0.7, (50, 50, 60, 60))],
        [("a", 0.9, (0, 0, 10, 10))],  # another class: missed
    ]
    assert detection_metrics.iou(pictures(tmp_path, truth, found)) == pytest.approx((0.5 + 1 + 0) / 3)
    assert detection_metrics.iou(pictures(tmp_path, truth, found, threshold=0.85)) == pytest.approx(0.5 / 3)


def test_nothing_found_is_zero(tmp_path: Path) -> None:
    images = pictures(tmp_path, [[true("a", 0, 0, 10, 10)], []], [[], []])
    assert {metric(images) for metric in detection_metrics.METRICS.values()} == {0.0}


def test_every_metric_the_service_offers_is_computed() -> None:
    tables = (classification_metrics.METRICS, detection_metrics.METRICS, vector_metrics.METRICS)
    assert [name for table in tables for name in table] == list(VALIDATION_METRICS)
    assert metrics_of("ObjectDetection") == DETECTION_METRICS
    assert metrics_of("Other") == VALIDATION_METRICS


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "classification", "result": []}, "no ground truth"),
        ({"type": "classification", "result": [], "samples": []}, "no samples"),
        ({"type": "poem", "result": [], "samples": [{"sampleId": "a"}]}, "type 'poem' is not known"),
        ({"type": "vector", "result": [], "samples": [{"sampleId": "a"}]}, "Top1: not for a result of type vector"),
        ({"type": "classification", "result": [{"label": "cat"}], "samples": []}, "{'label': 'cat'} has no sampleId"),
        ([1], "no ground truth"),
    ],
)
def test_a_bad_result_file_says_what_is_wrong(tmp_path: Path, document: Any, message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        measure(file, ["Top1"], LABELS, 0.0)


def test_samples_without_a_label_count(tmp_path: Path) -> None:
    samples = [
        classification_metrics.Sample("cat", ("cat", "dog")),
        classification_metrics.Sample("dog", ("cat", "dog")),
        classification_metrics.Sample("horse", ()),
        classification_metrics.Sample("dog", ("dog",)),
    ]
    assert classification_metrics.top1(samples, LABELS) == "0.5"
    assert classification_metrics.top5(samples, LABELS) == "0.75"
