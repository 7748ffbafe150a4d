"""Metrics of found objects: COCO's and Pascal VOC's mean average precision, and how well boxes fit.

Objects that a dataset marks as difficult or as a crowd need not be found, and who finds them is not wrong, however
often. A difficult object is found by a box that fits it (intersection over union), a crowd, which is a region, by a box
that lies in it (intersection over the box).
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training_service.worker.result_file import ResultFile, Row, label_of, named_labels, probability_of

VOC_IOU = 0.5


@dataclass(frozen=True)
class Truth:
    """An object that is there; the box is (xmin, ymin, xmax, ymax) in pixels, the far edges exclusive."""

    label: str
    box: tuple[float, ...]
    is_difficult: bool = False
    is_crowd: bool = False

    @property
    def is_ignored(self) -> bool:
        """True for what need not be found."""
        return self.is_difficult or self.is_crowd


@dataclass(frozen=True)
class Found:
    """An object that the model claims."""

    label: str
    score: float
    box: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """What is on one image and what was found there."""

    truth: tuple[Truth, ...]
    found: tuple[Found, ...]


def read_images(result: ResultFile, labels: Sequence[str], threshold: float = 0.0) -> list[Picture]:
    """The images of a result; boxes less probable than `threshold` do not count; 0 is none.

    ValueError for what is no probability or no box, for a label that is none of `labels` if there are any, and when
    there is nothing to find on any image.
    """
    truth = {row["sampleId"]: _true_rows(row) for row in result.samples}
    used = {label_of(row["label"], row["sampleId"]) for row in result.rows}
    used |= {label_of(true["label"], sample) for sample, rows in truth.items() for true in rows}
    meant = named_labels(used, labels)
    found: dict[str, list[Found]] = defaultdict(list)
    for row in result.rows:
        probability = probability_of(row)
        if not threshold or probability >= threshold:
            found[row["sampleId"]].append(Found(meant[row["label"]], probability, _box(row["bbox"])))
    images = [
        Picture(
            tuple(
                Truth(meant[true["label"]], _box(true["bbox"]), bool(true.get("difficult")), bool(true.get("crowd")))
                for true in rows
            ),
            tuple(found[sample]),
        )
        for sample, rows in truth.items()
    ]
    if all(true.is_ignored for image in images for true in image.truth):
        raise ValueError("the split has no object that counts")
    return images


def iou(images: Sequence[Picture]) -> float:
    """Mean intersection over union of the objects with the boxes that found them; 0 for an object that was missed.

    Boxes choose, the most probable first: each takes the object of its class on its image that it covers best and that
    is not taken yet. Boxes too many do not change it.
    """
    values: list[float] = []
    for image in images:
        counted = [true for true in image.truth if not true.is_ignored]
        best = [0.0] * len(counted)
        for found in sorted(image.found, key=lambda found: -found.score):
            overlaps = [
                _overlap(found.box, true.box) if true.label == found.label and not best[index] else 0.0
                for index, true in enumerate(counted)
            ]
            if overlaps and max(overlaps) > 0:
                index = overlaps.index(max(overlaps))
                best[index] = overlaps[index]
        values += best
    return sum(values) / len(values)


def coco_map(images: Sequence[Picture]) -> float:
    """COCO's AP: mean over classes and IoU .50:.05:.95 of the 101-point precision; all areas, 100 boxes of a class on
    an image."""
    precision = _coco_precision(images)
    return _mean_of_known(precision)


def coco_map50(images: Sequence[Picture]) -> float:
    """COCO's AP at IoU .50."""
    return _mean_of_known(_coco_precision(images)[:1])


def voc_map(images: Sequence[Picture]) -> float:
    """Pascal VOC's mean AP since 2010: IoU .5, the area below the precision made monotonic."""
    return _voc_map(images, _area)


def voc07_map(images: Sequence[Picture]) -> float:
    """Pascal VOC's mean AP of 2007: IoU .5, the mean of the best precision at recall 0, .1 ... 1."""
    return _voc_map(images, _eleven_points)


METRICS: Mapping[str, Callable[[Sequence[Picture]], float]] = {
    "IoU": iou,
    "mAP": coco_map,
    "mAP50": coco_map50,
    "mAP_VOC": voc_map,
    "mAP_VOC07": voc07_map,
}


def _coco_precision(images: Sequence[Picture]) -> np.ndarray:
    """Precision [IoU, recall, class], -1 for a class without objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        """Difficult objects are ignored as crowds are, and overlap as objects do."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            truth = self._gts[imgId, catId]
            for true in truth:
                true["iscrowd"] = true["is_region"]
            overlaps = super().computeIoU(imgId, catId)
            for true in truth:
                true["iscrowd"] = true["ignore"]
            return overlaps

    labels = sorted({true.label for image in images for true in image.truth})
    categories = {label: number for number, label in enumerate(labels, 1)}
    annotations = [
        _coco_box(number, categories[true.label], true.box)
        | {"iscrowd": int(true.is_ignored), "is_region": int(true.is_crowd)}
        for number, image in enumerate(images, 1)
        for true in image.truth
    ]
    # A class that is nowhere has no average precision.
    results = [
        _coco_box(number, categories[found.label], found.box) | {"score": found.score, "iscrowd": 0}
        for number, image in enumerate(images, 1)
        for found in image.found
        if found.label in categories
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = Evaluation(
            _coco(COCO(), images, labels, annotations), _coco(COCO(), images, labels, results), "bbox"
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"][:, :, :, 0, 0]
    return precision


def _coco(coco: Any, images: Sequence[Picture], labels: Sequence[str], annotations: list[dict[str, Any]]) -> Any:
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, 1)],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def _coco_box(image: int, category: int, box: tuple[float, ...]) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = box
    width, height = xmax - xmin, ymax - ymin
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [xmin, ymin, width, height],
        "area": width * height,
    }


def _mean_of_known(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean())


def _voc_map(images: Sequence[Picture], average: Callable[[np.ndarray, np.ndarray], float]) -> float:
    values = [average(*curve) for curve in _voc_curves(images)]
    return sum(values) / len(values)


def _voc_curves(images: Sequence[Picture]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Recall and precision after each box, the most probable first, of every class that has objects."""
    for label in sorted({true.label for image in images for true in image.truth if not true.is_ignored}):
        truth = [[true for true in image.truth if true.label == label and not true.is_crowd] for image in images]
        crowds = [[true for true in image.truth if true.label == label and true.is_crowd] for image in images]
        taken: set[tuple[int, int]] = set()
        found = [(box, number) for number, image in enumerate(images) for box in image.found if box.label == label]
        hits = []
        for box, number in sorted(found, key=lambda pair: -pair[0].score):
            overlaps = [_overlap(box.box, true.box) for true in truth[number]]
            index = int(np.argmax(overlaps)) if overlaps else -1
            fits = index >= 0 and overlaps[index] >= VOC_IOU
            if fits and truth[number][index].is_difficult:
                continue
            # A second box on the same object is wrong.
            if fits and (number, index) not in taken:
                taken.add((number, index))
                hits.append(True)
            elif not any(_share_within(box.box, crowd.box) >= VOC_IOU for crowd in crowds[number]):
                hits.append(False)
        right = np.cumsum(hits)
        objects = sum(not true.is_ignored for boxes in truth for true in boxes)
        yield right / objects, right / np.arange(1, len(hits) + 1)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    recall = np.concatenate([[0.0], recall])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * best).sum())


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # Tenths that are not exact in binary: a recall of 0.3 reaches the point 0.3.
    best = [precision[recall >= point / 10 - 1e-9].max(initial=0.0) for point in range(11)]
    return float(np.mean(best))


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union."""
    common = _intersection(first, second)
    return common / (_area_of(first) + _area_of(second) - common) if common else 0.0


def _share_within(box: tuple[float, ...], region: tuple[float, ...]) -> float:
    """Intersection over the area of `box`."""
    common = _intersection(box, region)
    return common / _area_of(box) if common else 0.0


def _intersection(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def _area_of(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _true_rows(row: Row) -> list[Row]:
    rows = row["groundTruth"]
    if not isinstance(rows, list) or not all(isinstance(true, dict) for true in rows):
        raise ValueError(f"sample {row['sampleId']!r}: groundTruth is no list of objects")
    return rows


def _box(text: str) -> tuple[float, ...]:
    edges = tuple(float(edge) for edge in text.split(","))
    if len(edges) != 4 or not np.isfinite(edges).all() or edges[0] > edges[2] or edges[1] > edges[3]:
        raise ValueError(f"bbox: {text[:200]!r} is not xmin,ymin,xmax,ymax")
    return edges
