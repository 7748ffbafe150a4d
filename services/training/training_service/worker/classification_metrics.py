"""Metrics of a classification, from the result file that inference_helper writes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from training_service.worker.result_file import ResultFile, label_of, named_labels, probability_of

# A matrix of more would be megabytes in every answer that lists it.
MAX_MATRIX_LABELS = 1000


@dataclass(frozen=True)
class Sample:
    """The true label of one sample and its predicted labels, the most probable first."""

    truth: str
    predicted: tuple[str, ...]


def read_samples(result: ResultFile, labels: Sequence[str], threshold: float = 0.0) -> list[Sample]:
    """The samples of a result; labels less probable than `threshold` do not count; 0 is none.

    Of equally probable labels the one written first comes first. ValueError for what is no probability, and for a label
    that is none of `labels` if there are any.
    """
    used = {label_of(row["label"], row["sampleId"]) for row in result.rows}
    used |= {label_of(row["groundTruth"], row["sampleId"]) for row in result.samples}
    meant = named_labels(used, labels)
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in result.rows:
        probability = probability_of(row)
        if not threshold or probability >= threshold:
            found[row["sampleId"]].append((probability, meant[row["label"]]))
    return [
        Sample(
            meant[row["groundTruth"]],
            tuple(label for _, label in sorted(found[row["sampleId"]], key=lambda pair: -pair[0])),
        )
        for row in result.samples
    ]


def top1(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """Fraction of samples whose first label is the true one."""
    return _top(samples, 1)


def top5(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """Fraction of samples whose true label is among the first five."""
    return _top(samples, 5)


def confusion_matrix(samples: Sequence[Sample], labels: Sequence[str]) -> str:
    """JSON `{"labels", "matrix"}`; rows are the truth, columns the first label; samples without one are left out.

    Without `labels` those that occur are listed, numbers by their value.
    """
    labels = labels or _occurring(samples)
    if len(labels) > MAX_MATRIX_LABELS:
        raise ValueError(f"ConfusionMatrix: {len(labels)} labels, allowed are {MAX_MATRIX_LABELS}")
    index = {label: position for position, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for sample in samples:
        if sample.predicted:
            matrix[index[sample.truth]][index[sample.predicted[0]]] += 1
    return json.dumps({"labels": list(labels), "matrix": matrix}, separators=(",", ":"))


METRICS: Mapping[str, Callable[[Sequence[Sample], Sequence[str]], str]] = {
    "Top1": top1,
    "Top5": top5,
    "ConfusionMatrix": confusion_matrix,
}


def _top(samples: Sequence[Sample], count: int) -> str:
    hits = sum(sample.truth in sample.predicted[:count] for sample in samples)
    return f"{hits / len(samples):.6g}"


def _occurring(samples: Sequence[Sample]) -> list[str]:
    labels = {sample.truth for sample in samples} | {sample.predicted[0] for sample in samples if sample.predicted}
    return sorted(labels, key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label))
