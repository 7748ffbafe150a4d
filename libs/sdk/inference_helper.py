"""Result files of inference programs.

A classification file is `{"type": "classification", "result": [{"sampleId", "label", "prob"}, ...]}` with one entry for
each sample and label, the most probable first; labels below the threshold are left out. With ground truth it also has
`"samples": [{"sampleId", "groundTruth"}, ...]`, one for each sample, those without any result included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LABELS_PER_SAMPLE = 5


def getClassificationResult(
    names: Sequence[str],
    probabilities: Iterable[Iterable[float]],
    label_file: str | Path | Sequence[str] | None = None,
    ground_truth: Sequence[int | str] | None = None,
    prob_thresh: float | str = 0.0,
    max_labels: int | None = LABELS_PER_SAMPLE,
) -> dict[str, Any]:
    """The classification of `names` as a dictionary.

    `probabilities` has a row for each name and a column for each class (lists, numpy arrays or tensors); a class is
    called by its line in `label_file` (a path, or the labels themselves), else by its index. `ground_truth` holds
    indices or labels. ValueError when the lengths disagree.
    """
    rows = [[float(value) for value in row] for row in probabilities]
    labels = _read_labels(label_file)
    threshold = float(prob_thresh or 0.0)
    if len(rows) != len(names):
        raise ValueError(f"probabilities: {len(rows)} rows for {len(names)} names")
    if ground_truth is not None and len(ground_truth) != len(names):
        raise ValueError(f"ground_truth: {len(ground_truth)} entries for {len(names)} names")

    def label_of(index: int) -> str:
        return labels[index] if index < len(labels) else str(index)

    result = []
    for name, row in zip(names, rows, strict=True):
        best = sorted(range(len(row)), key=lambda index: -row[index])[:max_labels]
        result += [
            {"sampleId": str(name), "label": label_of(index), "prob": row[index]}
            for index in best
            if row[index] >= threshold
        ]
    document: dict[str, Any] = {"type": "classification", "result": result}
    if ground_truth is not None:
        document["samples"] = [
            {"sampleId": str(name), "groundTruth": truth if isinstance(truth, str) else label_of(int(truth))}
            for name, truth in zip(names, ground_truth, strict=True)
        ]
    return document


def writeClassificationResult(
    file: str | Path,
    names: Sequence[str],
    probabilities: Iterable[Iterable[float]],
    label_file: str | Path | Sequence[str] | None = None,
    ground_truth: Sequence[int | str] | None = None,
    prob_thresh: float | str = 0.0,
) -> None:
    """Write the five most probable labels of each sample to `file`; arguments as `getClassificationResult`."""
    _write(file, getClassificationResult(names, probabilities, label_file, ground_truth, prob_thresh))


def writeClassificationResult2(
    file: str | Path,
    names: Sequence[str],
    probabilities: Iterable[Iterable[float]],
    label_file: str | Path | Sequence[str] | None = None,
    ground_truth: Sequence[int | str] | None = None,
    prob_thresh: float | str = 0.0,
) -> None:
    """Write every label of each sample that reaches the threshold; arguments as `getClassificationResult`."""
    document = getClassificationResult(names, probabilities, label_file, ground_truth, prob_thresh, max_labels=None)
    _write(file, document)


def writeObjectDetectionResult(
    file: str | Path,
    names: Sequence[str],
    detections: Iterable[Iterable[tuple[int | str, float, Sequence[float]]]],
    label_file: str | Path | Sequence[str] | None = None,
    prob_thresh: float | str = 0.0,
) -> None:
    """Write found objects: for each name a list of (class index or label, probability, (xmin, ymin, xmax, ymax))."""
    labels = _read_labels(label_file)
    result = [
        {
            "sampleId": str(name),
            "label": what if isinstance(what, str) else labels[what] if what < len(labels) else str(what),
            "prob": float(probability),
            "bbox": ",".join(f"{float(edge):g}" for edge in box),
        }
        for name, found in zip(names, detections, strict=True)
        for what, probability, box in found
        if float(probability) >= float(prob_thresh or 0.0)
    ]
    _write(file, {"type": "detection", "result": result})


def _read_labels(label_file: str | Path | Sequence[str] | None) -> list[str]:
    if not label_file:
        return []
    if not isinstance(label_file, str | Path):
        return list(label_file)
    return [line.strip() for line in Path(label_file).read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(file: str | Path, document: dict[str, Any]) -> None:
    target = Path(file)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text(json.dumps(document), encoding="utf-8")
    draft.replace(target)
