"""Result files of inference programs.

A classification file is `{"type": "classification", "result": [{"sampleId", "label", "prob"}, ...]}` with one entry for
each sample and label, the most probable first; labels below the threshold are left out, 0 being none. With ground truth
it also has `"samples": [{"sampleId", "groundTruth"}, ...]`, one for each sample, those without any result included.

A detection file is of the type "detection"; results also have `"bbox": "xmin,ymin,xmax,ymax"` (pixels, the far edges
exclusive) and the ground truth of a sample is a list of `{"label", "bbox", "difficult", "crowd"}`. A vector file is of
the type "vector", with `{"sampleId", "vector"}` as results and the true vector as the ground truth of a sample.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LABELS_PER_SAMPLE = 5


def parse_arguments(input_help: str) -> argparse.Namespace:
    """What an inference program is started with; what it does not know is left alone.

    `model` (folder of the weights) and `output_dir` are paths, `input_dir` is a text that `input_help` describes,
    `output_file` the name of the result file, `validate` true when ground truth is asked for; `prob_thresh` and
    `label_file` are texts as the functions here take them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path, help="folder with the final weights and serving.json")
    parser.add_argument("--input_dir", required=True, help=input_help)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--output_file", required=True, help="name of the result file in output_dir")
    parser.add_argument("--prob_thresh", default="0", help="what is less probable is left out")
    parser.add_argument(
        "--validate", default=False, type=_is_true, help="true: the input says what is right, report it as ground truth"
    )
    parser.add_argument("--label_file", default="", help="labels by their lines, instead of those of serving.json")
    return parser.parse_known_args()[0]


def _is_true(text: str) -> bool:
    return text.lower() == "true"


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
    indices or labels. ValueError when the lengths disagree, and for a probability that is not finite.
    """
    rows = [[float(value) for value in row] for row in probabilities]
    labels = _read_labels(label_file)
    threshold = float(prob_thresh or 0.0)
    if len(rows) != len(names):
        raise ValueError(f"probabilities: {len(rows)} rows for {len(names)} names")
    if ground_truth is not None and len(ground_truth) != len(names):
        raise ValueError(f"ground_truth: {len(ground_truth)} entries for {len(names)} names")

    result = []
    for name, row in zip(names, rows, strict=True):
        reaching = [_reaches(value, threshold, name) for value in row]
        best = sorted(range(len(row)), key=lambda index: -row[index])[:max_labels]
        result += [
            {"sampleId": str(name), "label": _label(index, labels), "prob": row[index]}
            for index in best
            if reaching[index]
        ]
    document: dict[str, Any] = {"type": "classification", "result": result}
    if ground_truth is not None:
        document["samples"] = [
            {"sampleId": str(name), "groundTruth": _label(truth, labels)}
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
    detections: Iterable[Any],
    label_file: str | Path | Sequence[str] | None = None,
    ground_truth: Sequence[Any] | None = None,
    prob_thresh: float | str = 0.0,
) -> None:
    """Write found objects to `file`; arguments as `getObjectDetectionResult`."""
    _write(file, getObjectDetectionResult(names, detections, label_file, ground_truth, prob_thresh))


def getObjectDetectionResult(
    names: Sequence[str],
    detections: Iterable[Any],
    label_file: str | Path | Sequence[str] | None = None,
    ground_truth: Sequence[Any] | None = None,
    prob_thresh: float | str = 0.0,
) -> dict[str, Any]:
    """The objects found on `names` as a dictionary.

    `detections` has an entry for each name: a list of (class index or label, probability, box), an [N, 6] array of
    xmin, ymin, xmax, ymax, probability, class index, or a dict of equally long `boxes`, `labels` and `scores`. A box is
    (xmin, ymin, xmax, ymax) in pixels of the image, the far edges exclusive. An entry of `ground_truth` is a list of
    (class index or label, box) or of dicts with `label`, `bbox` and perhaps `difficult` and `crowd`, or a dict of
    `boxes`, `labels` and perhaps `difficult` and `crowd`. ValueError when the lengths disagree, and for a probability
    that is not finite.
    """
    labels = _read_labels(label_file)
    threshold = float(prob_thresh or 0.0)
    per_name = list(detections)
    if len(per_name) != len(names):
        raise ValueError(f"detections: {len(per_name)} entries for {len(names)} names")
    if ground_truth is not None and len(ground_truth) != len(names):
        raise ValueError(f"ground_truth: {len(ground_truth)} entries for {len(names)} names")
    result = [
        {"sampleId": str(name), "label": _label(what, labels), "prob": float(probability), "bbox": _box_text(box)}
        for name, found in zip(names, per_name, strict=True)
        for what, probability, box in _found_objects(found)
        if _reaches(float(probability), threshold, name)
    ]
    document: dict[str, Any] = {"type": "detection", "result": result}
    if ground_truth is not None:
        document["samples"] = [
            {
                "sampleId": str(name),
                "groundTruth": [
                    {"label": _label(what, labels), "bbox": _box_text(box), "difficult": difficult, "crowd": crowd}
                    for what, box, difficult, crowd in _true_objects(truth)
                ],
            }
            for name, truth in zip(names, ground_truth, strict=True)
        ]
    return document


def writeVectorResult(
    file: str | Path,
    names: Sequence[str],
    vectors: Iterable[Any],
    ground_truth: Sequence[Any] | None = None,
) -> None:
    """Write predicted numbers: for each name a number or a sequence of numbers, and what they should be if known.

    ValueError when the lengths disagree.
    """
    rows = [_numbers(vector) for vector in vectors]
    if len(rows) != len(names):
        raise ValueError(f"vectors: {len(rows)} rows for {len(names)} names")
    if ground_truth is not None and len(ground_truth) != len(names):
        raise ValueError(f"ground_truth: {len(ground_truth)} entries for {len(names)} names")
    result = [{"sampleId": str(name), "vector": row} for name, row in zip(names, rows, strict=True)]
    document: dict[str, Any] = {"type": "vector", "result": result}
    if ground_truth is not None:
        document["samples"] = [
            {"sampleId": str(name), "groundTruth": _numbers(truth)}
            for name, truth in zip(names, ground_truth, strict=True)
        ]
    _write(file, document)


def _found_objects(found: Any) -> Iterable[tuple[Any, Any, Any]]:
    if isinstance(found, Mapping):
        return zip(found["labels"], found["scores"], found["boxes"], strict=True)
    return ((row[5], row[4], row[:4]) if len(row) == 6 else (row[0], row[1], row[2]) for row in found)


def _true_objects(truth: Any) -> Iterable[tuple[Any, Any, bool, bool]]:
    """Label, box, difficult, crowd."""
    if isinstance(truth, Mapping):
        count = len(truth["labels"])
        flags = [[bool(flag) for flag in truth.get(name, [False] * count)] for name in ("difficult", "crowd")]
        return zip(truth["labels"], truth["boxes"], *flags, strict=True)
    return (
        (row["label"], row["bbox"], bool(row.get("difficult")), bool(row.get("crowd")))
        if isinstance(row, Mapping)
        else (row[0], row[1], False, False)
        for row in truth
    )


def _reaches(probability: float, threshold: float, name: str) -> bool:
    if not math.isfinite(probability):
        raise ValueError(f"a probability of {name} is {probability}, which is no finite number")
    return not threshold or probability >= threshold


def _label(what: Any, labels: Sequence[str]) -> str:
    """The name of a class index; names and indices beyond the labels stay as they are."""
    if isinstance(what, str):
        return what
    index = int(what)
    return labels[index] if 0 <= index < len(labels) else str(index)


def _box_text(box: Iterable[Any]) -> str:
    edges = [float(edge) for edge in box]
    if len(edges) != 4:
        raise ValueError(f"a box has 4 numbers (xmin, ymin, xmax, ymax); this one has {len(edges)}")
    return ",".join(f"{edge:.10g}" for edge in edges)


def _numbers(vector: Any) -> list[float]:
    try:
        return [float(value) for value in vector]
    except TypeError:
        return [float(vector)]


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
