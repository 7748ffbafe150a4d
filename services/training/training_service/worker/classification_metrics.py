"""Metrics of a classification, from the result file that inference_helper writes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """The true label of one sample and its predicted labels, the most probable first."""

    truth: str
    predicted: tuple[str, ...]


def read_samples(document: Mapping[str, Any], threshold: float = 0.0) -> list[Sample]:
    """Samples of a result with ground truth; labels less probable than `threshold` do not count."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in document["result"]:
        if float(row["prob"]) >= threshold:
            found[row["sampleId"]].append((-float(row["prob"]), row["label"]))
    return [
        Sample(row["groundTruth"], tuple(label for _, label in sorted(found[row["sampleId"]])))
        for row in document["samples"]
    ]


def top1(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """Fraction of samples whose first label is the true one."""
    return _top(samples, 1)


def top5(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """Fraction of samples whose true label is among the first five."""
    return _top(samples, 5)


def confusion_matrix(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """JSON `{"labels", "matrix"}`; rows are the truth, columns the first label; samples without one are left out."""
    index = {label: position for position, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for sample in samples:
        if sample.predicted and sample.truth in index and sample.predicted[0] in index:
            matrix[index[sample.truth]][index[sample.predicted[0]]] += 1
    return json.dumps({"labels": list(labels), "matrix": matrix})


METRICS: Mapping[str, Callable[[Sequence[Sample], Sequence[str]], str]] = {
    "Top1": top1,
    "Top5": top5,
    "ConfusionMatrix": confusion_matrix,
}


def _top(samples: Sequence[Sample], count: int) -> str:
    if not samples:
        raise ValueError("the test split has no samples")
    hits = sum(sample.truth in sample.predicted[:count] for sample in samples)
    return f"{hits / len(samples):.6g}"
